"""Machines: the plugins that drive them, and who holds which."""

from cuckoo_api.fleet.control import Fleet
from cuckoo_api.fleet.deadlines import Deadlines
from cuckoo_api.fleet.leases import Lease
from cuckoo_api.fleet.registry import load_plugins

__all__ = ["Deadlines", "Fleet", "Lease", "load_plugins"]
