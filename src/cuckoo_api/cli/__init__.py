"""``cuckoo``, which is ``python -m cuckoo_api``: the server, and its commands for people."""

from cuckoo_api.cli.main import main

__all__ = ["main"]
