"""The signatures that come with the package, in the order in which the documentation lists them."""

from __future__ import annotations

from cuckoo_api.reporting.signatures import (
    discovery,
    download,
    evasion,
    files,
    looks,
    persistence,
    system,
    traffic,
)
from cuckoo_api.reporting.signatures.base import Signature
from cuckoo_api.reporting.signatures.loading import classes_of

MODULES = (persistence, files, discovery, download, system, evasion, traffic, looks)

SIGNATURES: tuple[type[Signature], ...] = tuple(
    kind for module in MODULES for kind in classes_of(module)
)
