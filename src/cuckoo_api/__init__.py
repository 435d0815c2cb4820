"""A sandbox server that speaks Cuckoo Sandbox 2.0's REST API and drives real hypervisors."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cuckoo-api-server")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"
