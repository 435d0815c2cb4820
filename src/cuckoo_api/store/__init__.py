"""Tasks, samples and machines in a database; the only place that knows SQL."""

from cuckoo_api.store.copy import copy_database, database_faults, pending_migration
from cuckoo_api.store.database import Store, database_path
from cuckoo_api.store.deliveries import Delivery, DeliveryStore
from cuckoo_api.store.events import Event, EventStore
from cuckoo_api.store.lifecycle import BUSY
from cuckoo_api.store.listing import TaskFilter
from cuckoo_api.store.machines import MachineStore
from cuckoo_api.store.samples import SampleStore
from cuckoo_api.store.tasks import TaskStore

__all__ = [
    "BUSY",
    "Delivery",
    "DeliveryStore",
    "Event",
    "EventStore",
    "MachineStore",
    "SampleStore",
    "Store",
    "TaskFilter",
    "TaskStore",
    "copy_database",
    "database_faults",
    "database_path",
    "pending_migration",
]
