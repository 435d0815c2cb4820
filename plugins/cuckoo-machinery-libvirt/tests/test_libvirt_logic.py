"""The plugin's decisions, on libvirt's own test driver: no daemon, no machine, proof of no more."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dpkt
import libvirt
import pytest

from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    BadConfig,
    Capability,
    MachineConfig,
    MachineNotFound,
    MachineryError,
    MachineState,
    NotSupported,
    SnapshotNotFound,
    StateChange,
)
from cuckoo_machinery_libvirt.backend import LibvirtBackend
from cuckoo_machinery_libvirt.capture import behead
from cuckoo_machinery_libvirt.errors import Uri
from cuckoo_machinery_libvirt.events import state_after
from cuckoo_machinery_libvirt.facts import hardware, without_snapshot
from cuckoo_machinery_libvirt.link import Link
from cuckoo_machinery_libvirt.plugin import OPTIONS, cuckoo_register_machinery

DSN = "test:///default"  # whose machines all connections of a process share
DOMAIN = """<domain type='test'><name>{name}</name><memory>262144</memory>{about}
  <os><type>hvm</type></os><devices>{devices}</devices></domain>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{form}'/>
  <source file='{file}'/><target dev='vda'/>{more}</disk>"""
WINDOWS = """<metadata><l:libosinfo xmlns:l="http://libosinfo.org/xmlns/libvirt/domain/1.0">
  <l:os id="http://microsoft.com/win/10"/></l:libosinfo></metadata>"""
CARD = """<interface type='network'><mac address='52:54:00:00:00:01'/>
  <source network='default'/></interface>"""

MACHINES = {
    "live": "",
    "paused": "",
    "off": "",
    "kept": DISK.format(form="qcow2", file="/kept", more=""),
    "fresh": DISK.format(form="raw", file="/fresh", more="<transient/>"),
    "raw": DISK.format(form="raw", file="/shared", more="") + CARD,
    "twin": DISK.format(form="qcow2", file="/shared", more="") + CARD,
}


def make_machines(connection: libvirt.virConnect) -> None:
    """Define them; three have a snapshot ``clean``, of the state that they are named for."""
    for name, devices in MACHINES.items():
        about = WINDOWS if name == "raw" else ""
        connection.defineXML(DOMAIN.format(name=name, about=about, devices=devices))
    for name in ("live", "paused", "off"):
        domain = connection.lookupByName(name)
        if name != "off":
            domain.create()
        if name == "paused":
            domain.suspend()
        domain.snapshotCreateXML("<domainsnapshot><name>clean</name></domainsnapshot>")
        if name != "off":
            domain.destroy()


def config(folder: Path, dsn: str) -> BackendConfig:
    options = {option.name: option.default for option in OPTIONS} | {"dsn": dsn}
    machines = tuple(MachineConfig(label=label, name=label) for label in MACHINES)
    return BackendConfig(name="kvm", machines=machines, state_dir=folder, options=options)


@pytest.fixture
def hypervisor() -> Iterator[libvirt.virConnect]:
    """A connection of the test's own to the machines."""
    connection = libvirt.open(DSN)
    make_machines(connection)
    yield connection
    for name in MACHINES:
        domain = connection.lookupByName(name)
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        del domain
    connection.close()


@pytest.fixture
async def backend(tmp_path: Path, hypervisor: libvirt.virConnect) -> AsyncIterator[LibvirtBackend]:
    """An open backend on these machines."""
    made = LibvirtBackend(config(tmp_path, DSN))
    await made.open()
    yield made
    await made.close()


def test_the_plugin_describes_itself() -> None:
    plugin = cuckoo_register_machinery()
    assert plugin.name == "kvm"
    assert plugin.default_conf.startswith("# Machines of libvirt")


# -- starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["live", "paused", "off"])
async def test_whatever_a_snapshot_holds_the_machine_runs(
    backend: LibvirtBackend, label: str
) -> None:
    await backend.restore_and_start(label, "clean")
    assert await backend.state(label) is MachineState.RUNNING


async def test_a_machine_whose_disk_keeps_changes_is_not_started_without_a_snapshot(
    backend: LibvirtBackend,
) -> None:
    with pytest.raises(SnapshotNotFound, match="take one with virsh snapshot-create-as"):
        await backend.restore_and_start("kept", "")
    assert await backend.state("kept") is MachineState.POWEROFF


async def test_a_machine_whose_disk_forgets_is_started_without_a_snapshot(
    backend: LibvirtBackend,
) -> None:
    await backend.restore_and_start("fresh", "")
    assert await backend.state("fresh") is MachineState.RUNNING


async def test_a_saved_machine_is_off_after_its_power_was_cut(
    backend: LibvirtBackend, hypervisor: libvirt.virConnect
) -> None:
    await backend.restore_and_start("live", "clean")
    hypervisor.lookupByName("live").managedSave()
    assert await backend.state("live") is MachineState.SAVED
    await backend.power_off("live")
    assert await backend.state("live") is MachineState.POWEROFF


# -- what is there --------------------------------------------------------------------------------


async def test_what_the_driver_cannot_do_is_not_offered(
    backend: LibvirtBackend, tmp_path: Path
) -> None:
    assert Capability.CAPTURE not in backend.capabilities
    assert Capability.WATCH in backend.capabilities
    with pytest.raises(NotSupported):
        await backend.start_capture("live", tmp_path / "x")


async def test_dumps_are_not_offered_where_libvirt_would_write_them_elsewhere() -> None:
    assert not Uri("qemu+ssh://root@host/system").local
    assert not Uri("qemu+tls://host/system").local
    assert Uri("qemu:///system").local
    assert Uri("qemu+unix:///system?socket=/run/x").local


@pytest.mark.parametrize(
    ("kind", "card", "past_qemu"),
    [
        ("kvm", "<model type='virtio'/>", True),
        ("kvm", "<model type='virtio'/><driver name='qemu'/>", False),
        ("kvm", "<model type='e1000'/>", False),
        ("qemu", "<model type='virtio'/>", False),
    ],
)
def test_which_cards_packets_may_pass_qemu_by(kind: str, card: str, past_qemu: bool) -> None:
    xml = f"<domain type='{kind}'><devices><interface>{card}</interface></devices></domain>"
    assert [card.uses_vhost for card in hardware(xml).cards] == [past_qemu]


def test_virtios_headers_are_left_out_of_a_capture(tmp_path: Path) -> None:
    ours, other = bytes.fromhex("525400007411"), bytes.fromhex("fe5400007411")
    frames = [ours + other + b"\x08\x00 in", other + ours + b"\x08\x00 out"]
    headed = [bytes(10) + frames[0], bytes(12) + frames[0], bytes(12) + frames[1]]
    with (tmp_path / "headed").open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for frame in headed:
            writer.writepkt(frame, 1)
        file.write(bytes(8))  # where QEMU was killed
    behead(tmp_path / "headed", tmp_path / "plain", ours)
    with (tmp_path / "plain").open("rb") as file:
        assert [frame for _, frame in dpkt.pcap.Reader(file)] == [frames[0], *frames]


@pytest.mark.parametrize(
    ("label", "platform", "faults"),
    [
        ("live", "", []),
        ("fresh", "", []),
        ("kept", "", ["it has no current snapshot"]),
        (
            "raw",
            "windows",
            [
                "the same disk as twin",
                "twin has the same MAC address",
                "disk vda is raw",
                "it has no current snapshot",
            ],
        ),
    ],
)
async def test_the_faults_of_a_machine_are_told(
    backend: LibvirtBackend, label: str, platform: str, faults: list[str]
) -> None:
    facts = await backend.inspect(label)
    assert facts.platform == platform
    assert facts.uuid
    assert len(facts.faults) == len(faults), facts.faults
    for fault, words in zip(facts.faults, faults, strict=True):
        assert words in fault


async def test_a_machine_outside_the_configuration_can_be_looked_at(
    backend: LibvirtBackend,
) -> None:
    [fault] = (await backend.inspect("test")).faults
    assert fault.startswith("disk vda is raw")
    facts = await backend.inspect("off")
    assert (facts.snapshots, facts.current_snapshot) == (("clean",), "clean")


def test_a_machine_without_a_disk_cannot_have_a_live_snapshot() -> None:
    [fault] = without_snapshot(hardware("<domain><devices/></domain>"))
    assert "add a qcow2 disk" in fault


async def test_labels_and_an_unknown_one(backend: LibvirtBackend) -> None:
    assert set(await backend.labels()) == {*MACHINES, "test"}
    with pytest.raises(MachineNotFound, match="no-such"):
        await backend.inspect("no-such")


# -- events ---------------------------------------------------------------------------------------


def test_a_machine_stopped_on_its_way_to_a_snapshot_has_not_crashed() -> None:
    events = [(5, 6), (2, 3), (4, 2)]
    states = [found[0] for event in events if (found := state_after(*event))]
    assert states == [MachineState.POWEROFF, MachineState.RUNNING, MachineState.RUNNING]
    assert state_after(5, 2) == (MachineState.ABORTED, "crashed")
    assert state_after(0, 0) is None  # defined


async def test_changes_are_heard_after_the_present_states(backend: LibvirtBackend) -> None:
    heard: list[StateChange] = []
    async with asyncio.timeout(10):
        async for change in backend.watch():
            heard.append(change)
            if len(heard) == len(MACHINES):
                assert {c.state for c in heard} == {MachineState.POWEROFF}
                await backend.restore_and_start("live", "clean")
            if change == StateChange("live", MachineState.RUNNING, "started"):
                break


async def test_the_news_end_when_the_backend_is_closed(backend: LibvirtBackend) -> None:
    heard: list[MachineState] = []
    async with asyncio.timeout(10):
        async for change in backend.watch():
            heard.append(change.state)
            if len(heard) == len(MACHINES):
                asyncio.get_running_loop().create_task(backend.close())
    assert set(heard) == {MachineState.POWEROFF}


async def test_a_file_that_cannot_be_written_is_an_error_of_the_machine(
    backend: LibvirtBackend, tmp_path: Path
) -> None:
    await backend.restore_and_start("live", "clean")
    for call in (backend.dump_memory, backend.screenshot):
        with pytest.raises(MachineryError, match=r"live: .*No such file"):
            await call("live", tmp_path / "nowhere" / "file")


# -- credentials and connections ------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        "qemu+tcp://someone:hunter%212@127.0.0.1:1/system",
        "qemu+tcp://127.0.0.1:1/system?password=hunter!2",
        "esx://someone:hunter!2@127.0.0.1:1/?no_verify=1",
    ],
)
async def test_credentials_are_never_shown(dsn: str, tmp_path: Path) -> None:
    made = LibvirtBackend(config(tmp_path, dsn))
    with pytest.raises((BackendUnavailable, BadConfig)) as caught:
        await made.open()
    await made.close()
    shown = "".join(traceback.format_exception(caught.value))
    shown += f"{caught.value} {Uri(dsn)!r} {caught.value.__cause__!r}"
    assert "hunter" not in shown
    assert "127.0.0.1:1" in str(caught.value)


def test_libvirts_words_are_kept_and_secrets_in_them_are_not() -> None:
    uri = Uri("esx://root:s3cret@host/?auto_answer=1")
    assert uri.shown == "esx://host/"
    assert uri.clean("login as root with s3cret failed") == "login as *** with *** failed"
    assert uri.clean(f"cannot open {uri.text}") == "cannot open esx://host/"


@pytest.mark.parametrize("dsn", ["", "qemu:// /", "qemu+bogus:///system"])
async def test_a_uri_that_can_never_work_is_a_fault_of_the_configuration(
    dsn: str, tmp_path: Path
) -> None:
    made = LibvirtBackend(config(tmp_path, dsn))
    with pytest.raises(BadConfig, match="dsn"):
        await made.open()
    await made.close()


@pytest.mark.parametrize("dsn", ["esx://root:hunter2@[host/"])
def test_a_dsn_that_is_no_uri_is_refused_without_showing_it(dsn: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        LibvirtBackend(config(tmp_path, dsn))
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


async def test_a_daemon_that_accepts_and_never_answers_does_not_hold_us() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        link = Link(Uri(f"qemu+tcp://127.0.0.1:{port}/system"), "test")
        with pytest.raises(BackendUnavailable, match="no answer"):
            await link.connect(0.2)
        async with asyncio.timeout(5):
            await link.close()
        with pytest.raises(BackendUnavailable, match="closed"):
            await link.connect(0.2)


async def test_calls_of_a_closed_backend_are_refused(tmp_path: Path) -> None:
    made = LibvirtBackend(config(tmp_path, DSN))
    await made.open()
    await made.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        await made.state("test")
