"""What the doctor says of machines, of their agents, and of what they need of this host."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.cli import doctor as module
from cuckoo_api.cli import machines
from cuckoo_api.cli.doctor import fleet, host, network
from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import Capability
from cuckoo_api.settings.init import with_value
from cuckoo_api.testing.fake import ALL, FakeHypervisor, fake_plugin

pytestmark = pytest.mark.slow

Said = list[tuple[str, str, str, str]]
Doctor = Callable[[], Coroutine[Any, Any, Said]]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHypervisor]:
    async with FakeHypervisor() as world:
        plugin = fake_plugin(world, capabilities=ALL & ~Capability.CAPTURE)
        for user in (module, machines):
            monkeypatch.setattr(user, "load_plugins", lambda: load_plugins([plugin]))
        yield world


@pytest.fixture
def ask(
    cwd: Path, world: FakeHypervisor, capsys: pytest.CaptureFixture[str], free_port: int
) -> Doctor:
    """The doctor's findings, for the machines of this world, on the interface ``lo``."""
    path = cwd / "conf" / "cuckoo.conf"
    text = path.read_text()
    for section, key, value in (
        ("cuckoo", "machinery", "fake"),
        ("api", "port", "0"),
        ("resultserver", "ip", "127.0.0.1"),
        ("resultserver", "port", str(free_port)),
    ):
        text = with_value(text, section, key, value)
    path.write_text(text)

    async def run() -> Said:
        conf = f"[fake]\nmachines = {', '.join(world.machines)}\n"
        for number, name in enumerate(world.machines, 1):
            conf += f"[{name}]\nlabel = {name}\nip = 192.0.2.{number}\ninterface = lo\n"
        if not (cwd / "conf" / "fake.conf").exists():
            (cwd / "conf" / "fake.conf").write_text(conf)
        await module.doctor(argparse.Namespace(json=True, deep=False), cwd)
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        return [(one["about"], one["level"], one["text"], one["advice"]) for one in found]

    return run


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def about(said: Said, what: str) -> list[tuple[str, str]]:
    return [(level, text) for name, level, text, _ in said if name == what]


async def test_the_agent_of_a_guest_that_runs_is_asked_and_no_other(
    world: FakeHypervisor, ask: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "AGENT", 0.1)
    for name in ("off", "on"):
        world.add(name)
    world.add("mute", with_guest=False)
    for name in ("on", "mute"):
        await world.start_by_hand(name)
    said = await ask()
    assert about(said, "off") == [("OK", "fake has it")]
    assert about(said, "on") == [("OK", "fake has it"), ("OK", "it runs, and its agent answers")]
    [_, (level, text)] = about(said, "mute")
    assert (level, "it runs. The agent at" in text) == ("WARN", True)
    assert world.running() == ["on", "mute"], "nothing is changed"


async def test_the_place_where_guests_look_for_the_result_server_has_to_be_free(
    world: FakeHypervisor, ask: Doctor, free_port: int
) -> None:
    world.add("one", with_guest=False)
    place = f"127.0.0.1:{free_port}"
    assert about(await ask(), "result server") == [("OK", f"{place} is free")]
    with socket.create_server(("127.0.0.1", free_port)):
        [(level, text)] = about(await ask(), "result server")
    assert (level, text) == (
        "FAIL",
        f"{place}: Address already in use; the server does not start",
    )


async def test_what_a_capture_needs_is_looked_for(
    world: FakeHypervisor, ask: Doctor, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("one")
    said = await ask()
    assert about(said, "programs") == [("OK", "installed: prlimit, tcpdump")]
    path = cwd / "conf" / "fake.conf"
    path.write_text(path.read_text().replace("interface = lo", "interface = nowhere0"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(host, "PATH", "")
    said = await ask()
    assert ("WARN", "there is no interface nowhere0: its network is not captured") in about(
        said, "one"
    )
    [lost] = [one[1:] for one in said if one[0] == "programs"]
    assert lost == (
        "FAIL",
        "not installed: prlimit, tcpdump; guests' networks are not captured",
        "apt-get install tcpdump util-linux",
    )


@pytest.mark.parametrize(
    ("there", "usable", "level", "advice"),
    [
        (True, True, "OK", ""),
        (True, False, "WARN", "usermod -aG kvm"),
        (False, False, "WARN", "firmware"),
    ],
)
async def test_without_kvm_it_is_said_what_is_missing(
    ask: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    there: bool, usable: bool, level: str, advice: str,
) -> None:  # fmt: skip
    device = tmp_path / "kvm"
    if there:
        device.touch()
    monkeypatch.setattr(host, "KVM", device)
    monkeypatch.setattr(host.os, "access", lambda _path, _mode: usable)
    [found] = [one for one in await ask() if one[0] == "kvm"]
    assert (found[1], advice in found[3]) == (level, True)


async def test_the_rooters_programs_are_looked_for_where_tasks_may_have_routes(
    ask: Doctor, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vpn = "[vpn]\nenabled = yes\nvpns = wg\n[wg]\ninterface = wg0\ntype = wireguard\n"
    (cwd / "conf" / "routing.conf").write_text(vpn)
    monkeypatch.setattr(network, "PROGRAMS", {"no-such-program": "a-package"})
    said = await ask()
    [lost] = [one[2:] for one in said if one[0] == "programs"]
    assert lost == (
        "not installed: no-such-program; the rooter needs them",
        "apt-get install a-package",
    )
