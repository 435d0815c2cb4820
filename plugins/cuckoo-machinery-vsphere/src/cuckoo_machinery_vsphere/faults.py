"""pyVmomi's exceptions -> the contract's errors, in one line that an operator can act on."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from cuckoo_api.machinery import (
    BackendUnavailable,
    MachineNotFound,
    MachineryError,
    NotSupported,
    SnapshotNotFound,
    WrongState,
)

LOST = (OSError, HTTPException, ExpatError)
"""What pyVmomi raises when there is no answer, or none that makes sense. TLS's errors are among
them."""
REFUSED = (vim.fault.InvalidLogin, vim.fault.NoPermission)


class Cancelled(MachineryError):
    """The caller gave the operation up. Nobody is there to see it."""


def words(error: BaseException) -> str:
    """What an exception says. ``str`` of one of pyVmomi's is a page of its fields."""
    if isinstance(error, vmodl.MethodFault):
        said = " ".join(str(error.msg or "").split())
        kind = type(error).__name__.rpartition(".")[2]
        return f"{said} ({kind})" if said else kind
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {' '.join(str(error.reason or error.strerror or error).split())}"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ExpatError):
        return "its answer is not XML"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def translated(error: BaseException, what: str) -> MachineryError:
    """The contract's error for one of pyVmomi's; ``what`` says who did what."""
    text = f"{what}: {words(error)}"
    if isinstance(error, MachineryError):
        return error
    if isinstance(error, LOST):
        return BackendUnavailable(text)
    if isinstance(error, vmodl.fault.ManagedObjectNotFound):
        return MachineNotFound(text)
    if isinstance(error, vim.fault.NotFound):
        return SnapshotNotFound(text)
    if isinstance(error, vmodl.fault.MethodNotFound | vmodl.fault.NotSupported):
        method = getattr(error, "method", "") or "this"
        return NotSupported(f"{what}: this vSphere cannot do {method}: {words(error)}")
    if isinstance(error, vim.fault.InvalidState):  # InvalidPowerState and TaskInProgress too
        return WrongState(text)
    if isinstance(error, vim.fault.NotAuthenticated | vim.fault.InvalidLogin):
        return BackendUnavailable(text)
    return MachineryError(text)
