"""What a backend may raise. Anything else that escapes a backend is a bug of the plugin.

Keep the hypervisor's own message in the text and chain the cause (``raise ... from exc``).
"""

from __future__ import annotations


class MachineryError(Exception):
    """Base of all of them. ``str(error)`` is one line that an operator can act on."""


class MachineNotFound(MachineryError):
    """The hypervisor has no machine with this label."""


class SnapshotNotFound(MachineryError):
    """The machine exists, the snapshot does not."""


class WrongState(MachineryError):
    """The machine is not in a state that allows this call."""


class BackendUnavailable(MachineryError):
    """The hypervisor does not answer, refuses the login, or went away during the call."""


class OperationTimedOut(MachineryError):
    """The hypervisor took the order and did not finish it in time."""


class BadConfig(MachineryError):
    """The configuration cannot work, whatever the state of the hypervisor."""


class NotSupported(MachineryError):
    """The backend lacks the capability that this method needs."""
