"""Guests on a bridge that the server's rooter makes, for a server without any right."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from hold import bridges
from qemukit import ADDRESSES, GATEWAY, Lab, all_end, family, links, rules, run
from test_qemu_ends import AS_A_USER

from conftest import Labs
from cuckoo_api.machinery import BackendUnavailable, BadConfig, Tap, Taps
from cuckoo_api.network.rooter.server import Rooter
from cuckoo_api.settings import Network
from cuckoo_api.settings.routing import RooterSection
from cuckoo_machinery_qemu.backend import QemuBackend
from cuckoo_machinery_qemu.usernet import UserNetwork


@pytest.fixture
def lab(labs: Labs) -> Lab:
    """Its snapshots were taken on the plugin's own bridge, and fit."""
    return labs("bridge")


@pytest.fixture
async def rooter(namespace: None, tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of one, which makes the bridge."""
    made = tuple(f"{name}:{address}" for name, address in bridges().items())
    rooter = Rooter(Network(rooter=RooterSection(interfaces=tuple(bridges()), bridges=made)))
    await rooter.open(tmp_path / "sock")
    yield tmp_path / "sock"
    await rooter.close()
    run("ip", "route", "delete", "unreachable", "192.168.73.0/24")  # which it leaves
    run("nft", "flush", "ruleset")


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


async def test_an_ordinary_user_s_machine_has_a_tap_of_the_rooter_s(
    lab: Lab, rooter: Path, tmp_path: Path
) -> None:
    hold = str(Path(__file__).with_name("hold.py"))
    state_dir = lab.state_dir(tmp_path / "state")
    process = await asyncio.create_subprocess_exec(
        *(*AS_A_USER, sys.executable, hold, str(state_dir), *lab.words(), str(rooter)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"the guest says Linux\n"
        [qemu] = family(process.pid)[1:]
        assert Path(f"/proc/{qemu}/exe").readlink().name == "qemu-system-x86_64"
        found = status(qemu)
        assert (found["CapEff"], found["CapPrm"], found["NoNewPrivs"]) == (
            ["0" * 16], ["0" * 16], ["1"],
        )  # fmt: skip
        shown = run("nsenter", f"--net=/proc/{qemu}/ns/net", "ip", "-br", "link")
        assert [line.split()[0] for line in shown.splitlines()] == ["lo"], "an empty network"
        opened = [str(path.readlink()) for path in Path(f"/proc/{qemu}/fd").iterdir()]
        assert opened.count("/dev/net/tun") == 1
        [tap] = [name for name in links() if name.startswith("ckr")]
        assert f'iifname "{tap}"' in rules()
        with all_end([qemu]):
            said, _ = await process.communicate(b"")
        assert said == b"closed\n"
        assert tap not in links()
        assert tap not in rules()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class Nobody:
    """Taps of a rooter that is away."""

    bridges: dict[str, IPv4Interface] = field(default_factory=bridges)

    async def ready(self) -> None:
        raise BackendUnavailable("Rooter not available")

    async def plug(self, bridge: str, guest: str, mac: str) -> Tap:
        raise AssertionError("asked for a tap")


def backend(lab: Lab, tmp_path: Path, taps: Taps, **options: str) -> QemuBackend:
    return QemuBackend(replace(lab.config(lab.state_dir(tmp_path / "s"), **options), taps=taps))


async def test_without_the_rooter_there_is_no_other_way_to_its_bridge(
    lab: Lab, tmp_path: Path
) -> None:
    for number, network in enumerate(("bridge", "auto")):
        made = backend(lab, tmp_path / str(number), Nobody(), network=network)
        with pytest.raises(BackendUnavailable, match="Rooter not available"):
            await made.open()
        await made.close()
    assert "cktbr" not in links()


async def test_who_wants_no_bridge_does_not_ask_the_rooter(lab: Lab, tmp_path: Path) -> None:
    made = backend(lab, tmp_path, Nobody(), network="user")
    await made.open()
    assert isinstance(made._host.network, UserNetwork)
    await made.close()


async def test_a_machine_that_is_not_of_the_bridge_s_network_is_told_of(
    lab: Lab, rooter: Path, tmp_path: Path
) -> None:
    taps = Nobody()
    made = backend(lab, tmp_path, taps)
    one, two = made.config.machines
    made.config = replace(
        made.config,
        machines=(replace(one, ip="10.0.0.5"), replace(two, resultserver_ip="10.0.0.1")),
    )
    with pytest.raises(BackendUnavailable):
        await made.open()
    faults = [fault for label in ADDRESSES for fault in (await made.inspect(label)).faults]
    here = f"[rooter] bridges in routing.conf has cktbr:{GATEWAY}/24"
    assert faults == [
        f"one: ip = 10.0.0.5 is not in that network: {here}",
        f"two: resultserver_ip = 10.0.0.1 is not its address: {here}",
    ]
    with pytest.raises(BadConfig):
        await made.restore_and_start("one", "")
    await made.close()
