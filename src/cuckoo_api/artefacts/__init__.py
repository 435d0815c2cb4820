"""Where samples and analyses lie: a local folder in Cuckoo 2's layout."""

from cuckoo_api.artefacts.folder import AnalysisFolder, Member
from cuckoo_api.artefacts.keep import BAD, NEW
from cuckoo_api.artefacts.local import Artefacts
from cuckoo_api.artefacts.upload import Upload
from cuckoo_api.artefacts.write import write_atomic

__all__ = ["BAD", "NEW", "AnalysisFolder", "Artefacts", "Member", "Upload", "write_atomic"]
