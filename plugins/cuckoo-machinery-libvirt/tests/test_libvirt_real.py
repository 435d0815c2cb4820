"""What the contract's suite leaves open, on the real libvirtd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import dpkt
import pytest
from libvirtkit import ADDRESSES, GATEWAY, SNAPSHOT, Lab, agent_of, connected, inside

from cuckoo_api.machinery import (
    BackendUnavailable,
    Capability,
    MachineState,
    OperationTimedOut,
    SnapshotNotFound,
    StateChange,
)
from cuckoo_machinery_libvirt import link
from cuckoo_machinery_libvirt.backend import LibvirtBackend

Make = Callable[..., Awaitable[LibvirtBackend]]
RUNNING, POWEROFF = MachineState.RUNNING, MachineState.POWEROFF


@pytest.fixture
async def make(lab: Lab, tmp_path: Path) -> AsyncIterator[Make]:
    """Open backends; at the end the machines are off."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(**options: str) -> LibvirtBackend:
            backend = LibvirtBackend(lab.config(tmp_path, **options))
            stack.push_async_callback(backend.close)
            await backend.open()
            for label in ADDRESSES:
                stack.push_async_callback(backend.power_off, label)
            return backend

        yield open_one


class Heard:
    """A backend's events, one by one."""

    def __init__(self, backend: LibvirtBackend) -> None:
        self._events = backend.watch()
        self.all: list[StateChange] = []

    async def until(self, label: str, state: MachineState) -> StateChange:
        async with asyncio.timeout(30):
            async for change in self._events:
                self.all.append(change)
                if (change.label, change.state) == (label, state):
                    return change
        raise AssertionError(f"the events ended: {self.all}")

    async def close(self) -> None:
        await self._events.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_machine_that_somebody_reverts_has_not_crashed(make: Make, lab: Lab) -> None:
    backend = await make()
    await backend.restore_and_start("one", SNAPSHOT)
    heard = Heard(backend)
    await heard.until("one", RUNNING)
    with connected(lab.libvirtd.uri) as connection:
        domain = connection.lookupByName("one")
        domain.revertToSnapshot(domain.snapshotLookupByName(SNAPSHOT))
        await heard.until("one", RUNNING)
        domain.destroy()
        change = await heard.until("one", POWEROFF)
        while change.reason != "destroyed":
            change = await heard.until("one", POWEROFF)
        del domain
    assert MachineState.ABORTED not in {change.state for change in heard.all}
    await heard.close()


async def test_a_qemu_that_was_killed_is_aborted_until_it_is_powered_off(
    make: Make, lab: Lab
) -> None:
    backend = await make()
    await backend.restore_and_start("one", SNAPSHOT)
    heard = Heard(backend)
    await heard.until("one", RUNNING)
    os.kill(lab.libvirtd.qemu("one"), signal.SIGKILL)
    assert (await heard.until("one", MachineState.ABORTED)).reason == "failed"
    assert await backend.state("one") is MachineState.ABORTED
    await backend.power_off("one")
    await heard.until("one", POWEROFF)
    assert await backend.state("one") is POWEROFF
    await heard.close()


async def test_guests_run_on_while_libvirtd_is_away_and_are_found_again(
    make: Make, lab: Lab
) -> None:
    backend = await make()
    await backend.restore_and_start("one", SNAPSHOT)
    heard = Heard(backend)
    await heard.until("two", POWEROFF)
    qemu = lab.libvirtd.qemu("one")
    lab.libvirtd.kill()
    change = await heard.until("one", MachineState.UNREACHABLE)
    assert "closed the connection" in change.reason
    await heard.until("two", MachineState.UNREACHABLE)
    await asyncio.to_thread(lab.libvirtd.start)
    await heard.until("one", RUNNING)
    await heard.until("two", POWEROFF)
    async with agent_of("one") as agent:
        assert await inside(agent, "echo here") == "here\n"
    assert lab.libvirtd.qemu("one") == qemu
    await heard.close()


@pytest.fixture
def frozen(lab: Lab) -> Iterator[Callable[[], None]]:
    """Makes libvirtd hang, until the end of the test."""
    yield lab.libvirtd.freeze
    lab.libvirtd.thaw()


async def test_a_libvirtd_that_hangs_is_unreachable(
    make: Make, frozen: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PATIENCE", 0.5)
    backend = await make()
    heard = Heard(backend)
    await heard.until("two", POWEROFF)
    frozen()
    with pytest.raises(OperationTimedOut):
        await backend.state("one")
    change = await heard.until("one", MachineState.UNREACHABLE)
    assert change.reason == "the daemon does not answer any more"
    with pytest.raises(BackendUnavailable, match="no answer"):
        await backend.state("one")
    await heard.close()


async def test_a_restore_of_an_unknown_snapshot_names_those_there_are(make: Make) -> None:
    backend = await make()
    with pytest.raises(SnapshotNotFound, match=r"one has no snapshot 'klean'; it has: .*clean"):
        await backend.restore_and_start("one", "klean")


async def test_a_capture_holds_what_the_guest_sent(make: Make, tmp_path: Path) -> None:
    backend = await make()
    assert Capability.CAPTURE in backend.capabilities
    await backend.restore_and_start("one", SNAPSHOT)
    path = tmp_path / "dump.pcap"
    with socket.socket(type=socket.SOCK_DGRAM) as listener:
        listener.bind((GATEWAY, 9999))
        listener.settimeout(20)
        await backend.start_capture("one", path)
        async with agent_of("one") as agent:
            send = (
                f'socket.socket(type=socket.SOCK_DGRAM).sendto(b"to-be-seen", ("{GATEWAY}", 9999))'
            )
            await inside(agent, f"python3 -c 'import socket; {send}'")
        assert await asyncio.to_thread(listener.recv, 100) == b"to-be-seen"
    await backend.stop_capture("one")
    with path.open("rb") as file:
        frames = [dpkt.ethernet.Ethernet(frame) for _, frame in dpkt.pcap.Reader(file)]
    datagrams = [f.data.data for f in frames if isinstance(f.data.data, dpkt.udp.UDP)]
    assert [(d.dport, d.data) for d in datagrams] == [(9999, b"to-be-seen")]
    assert path.stat().st_mode & 0o777 == 0o640
    assert list((tmp_path / "captures").iterdir()) == []


async def test_memory_is_dumped_in_the_form_asked_for(make: Make, tmp_path: Path) -> None:
    backend = await make(dump_format="kdump-zlib")
    await backend.restore_and_start("one", SNAPSHOT)
    path = tmp_path / "memory.dmp"
    await backend.dump_memory("one", path)
    with path.open("rb") as file:
        assert file.read(12) == b"makedumpfile"
    assert path.stat().st_uid == os.geteuid()
    assert await backend.state("one") is RUNNING


async def test_the_facts_of_a_machine(make: Make) -> None:
    facts = await (await make()).inspect("one")
    assert facts.current_snapshot in facts.snapshots
    assert (facts.platform, facts.faults) == ("linux", ())
