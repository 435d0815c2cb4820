"""libvirt's event loop, one for the process, and what its lifecycle events mean."""

from __future__ import annotations

import functools
import threading

import libvirt
import structlog

from cuckoo_api.machinery import MachineState

log = structlog.get_logger()

_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: (MachineState.POWEROFF, "shut down"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: (MachineState.POWEROFF, "destroyed"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: (MachineState.ABORTED, "crashed"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: (MachineState.POWEROFF, "migrated"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: (MachineState.SAVED, "saved"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: (MachineState.ABORTED, "failed"),
    # a running machine is stopped on its way to a snapshot: not a crash
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: (MachineState.POWEROFF, "reverted"),
}
_OTHERS = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: (MachineState.RUNNING, "started"),
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: (MachineState.PAUSED, "suspended"),
    libvirt.VIR_DOMAIN_EVENT_RESUMED: (MachineState.RUNNING, "resumed"),
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: (MachineState.PAUSED, "suspended by the guest"),
    libvirt.VIR_DOMAIN_EVENT_CRASHED: (MachineState.ABORTED, "the guest panicked"),
}
_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: MachineState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: MachineState.RUNNING,  # on its way, not yet there
    libvirt.VIR_DOMAIN_SHUTOFF: MachineState.POWEROFF,
    libvirt.VIR_DOMAIN_CRASHED: MachineState.ABORTED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: MachineState.PAUSED,
}
_BROKEN = {libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED}


def state_after(event: int, detail: int) -> tuple[MachineState, str] | None:
    """The state that a lifecycle event tells of, and libvirt's word; None where it tells none."""
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        return _STOPPED.get(detail, (MachineState.POWEROFF, f"stopped ({detail})"))
    return _OTHERS.get(event)


def state_of(domain: libvirt.virDomain) -> MachineState:
    """What a machine does now. Blocks."""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        if reason in _BROKEN:
            return MachineState.ABORTED
        if _is_saved(domain):
            return MachineState.SAVED
    return _STATES.get(state, MachineState.RUNNING)


def _is_saved(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.hasManagedSaveImage())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return False
        raise


@functools.cache
def run_events() -> None:
    """Start the event loop, once for the process; before the first connection is opened.

    Without it no connection notices that its daemon has gone. libvirt can neither stop nor
    replace it.
    """
    libvirt.registerErrorHandler(_be_quiet, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run, name="libvirt-events", daemon=True).start()


def _be_quiet(_context: object, _error: object) -> None:
    """libvirt prints each error, which may name credentials, besides raising it."""


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as exc:
            log.warning("libvirt.event_loop", reason=str(exc))
