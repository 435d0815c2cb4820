"""A sandbox server that speaks Cuckoo Sandbox 2.0's REST API and drives real hypervisors."""

from __future__ import annotations

__version__: str


def __getattr__(name: str) -> str:
    """``__version__``, when it is asked for: worker processes start without reading metadata."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cuckoo-api-server")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0.0.0"
