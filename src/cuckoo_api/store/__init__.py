"""Tasks, samples and machines in a database; the only place that knows SQL."""

from cuckoo_api.store.database import Store
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
]
