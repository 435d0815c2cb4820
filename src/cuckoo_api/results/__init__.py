"""Results: what guests send while a sample runs, over Cuckoo 2's protocol."""

from cuckoo_api.results.server import ResultServer
from cuckoo_api.results.session import ResultSession

__all__ = ["ResultServer", "ResultSession"]
