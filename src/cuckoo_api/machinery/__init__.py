"""The public contract for machinery plugins. It imports nothing else of the project."""

from cuckoo_api.machinery.backend import MachineryBackend
from cuckoo_api.machinery.errors import (
    BackendUnavailable,
    BadConfig,
    MachineNotFound,
    MachineryError,
    NotSupported,
    OperationTimedOut,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_api.machinery.hookspec import (
    API_VERSION,
    PROJECT_NAME,
    MachineryHooks,
    MachineryPlugin,
    hookimpl,
)
from cuckoo_api.machinery.types import (
    ROUTED_MARK,
    ROUTED_MASK,
    BackendConfig,
    Capability,
    GuestAddress,
    MachineConfig,
    MachineFacts,
    MachineState,
    Option,
    Secret,
    Service,
    StateChange,
)

__all__ = [
    "API_VERSION",
    "PROJECT_NAME",
    "ROUTED_MARK",
    "ROUTED_MASK",
    "BackendConfig",
    "BackendUnavailable",
    "BadConfig",
    "Capability",
    "GuestAddress",
    "MachineConfig",
    "MachineFacts",
    "MachineNotFound",
    "MachineState",
    "MachineryBackend",
    "MachineryError",
    "MachineryHooks",
    "MachineryPlugin",
    "NotSupported",
    "OperationTimedOut",
    "Option",
    "Secret",
    "Service",
    "SnapshotNotFound",
    "StateChange",
    "WrongState",
    "hookimpl",
]
