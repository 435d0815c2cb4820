"""``cuckoo machines check`` and ``discover``, typed against the fake hypervisor."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuckoo_api.cli import common, machines
from cuckoo_api.cli.discovery import Found, conf
from cuckoo_api.cli.main import main
from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import Capability, MachineFacts, MachineryError
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import load_settings
from cuckoo_api.settings.init import with_value
from cuckoo_api.testing.fake import ALL, Failing, FakeHypervisor, Snapshot, fake_plugin

pytestmark = pytest.mark.slow

SECTION = "[{name}]\nlabel = {name}\nip = 192.168.55.{number}\nsnapshot = clean\n"
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHypervisor]:
    """One hypervisor, and a working directory that names it."""
    world = FakeHypervisor()
    for module in (common, machines):
        monkeypatch.setattr(module, "load_plugins", lambda: load_plugins([fake_plugin(world)]))
    monkeypatch.setenv("COLUMNS", "200")
    yield world
    assert world.running() == []
    assert world.open_backends == 0
    asyncio.run(world.__aexit__())


def configure(cwd: Path, *names: str, active: bool = True) -> None:
    text = f"[fake]\nmachines = {', '.join(names)}\n"
    for number, name in enumerate(names, 11):
        text += SECTION.format(name=name, number=number)
    (cwd / "conf" / "fake.conf").write_text(text)
    if active:
        path = cwd / "conf" / "cuckoo.conf"
        text = with_value(path.read_text(), "cuckoo", "machinery", "fake")
        path.write_text(with_value(text, "timeouts", "agent", "1"))


@pytest.fixture
def typed(cwd: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Type a command: its exit code, what it prints, and what it complains of."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["--cwd", str(cwd), "machines", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# -- check --------------------------------------------------------------------------------------


def test_each_machine_is_proven_with_its_times(
    cwd: Path, world: FakeHypervisor, typed: Typed
) -> None:
    configure(cwd, "one", "two")
    world.add("one")
    world.add("two")
    code, out, _ = typed("check")

    assert code == 0
    for name in ("one", "two"):
        [line] = [line for line in out.splitlines() if f" {name} " in line]
        assert line.count(" s ") == 3
        assert "works" in line
        assert world.starts(name) == 1


def test_a_machine_that_fails_is_off_and_said_and_the_others_are_tried(
    cwd: Path, world: FakeHypervisor, typed: Typed
) -> None:
    configure(cwd, "mute", "broken", "lost", "good")
    world.add("mute", with_guest=False)
    world.add("broken")
    world.behave("restore_and_start", Failing(MachineryError("no [disk]")), label="broken")
    world.add("lost", snapshots={"base": Snapshot()})
    world.add("good")
    code, out, _ = typed("check", "--json")

    assert code == 1
    mute, broken, lost, good = json.loads(out)
    assert mute["fault"].endswith("did not answer within 1 s")
    assert (mute["restored"] is None, mute["agent"], mute["off"] is None) == (False, None, False)
    assert (broken["fault"], broken["restored"]) == ("no [disk]", None)
    assert lost["fault"].startswith("it has no snapshot 'clean', but: base (take it, or correct")
    assert world.calls("restore_and_start", "lost") == []
    assert (good["name"], good["backend"], good["fault"]) == ("good", "fake", "")
    assert world.calls("power_off", "broken")


def test_only_the_named_ones_are_touched(cwd: Path, world: FakeHypervisor, typed: Typed) -> None:
    configure(cwd, "one", "two")
    world.add("one")
    world.add("two")
    assert typed("check", "two")[0] == 0
    assert (world.starts("one"), world.starts("two")) == (0, 1)
    code, out, err = typed("check", "two", "three", "four")
    assert (code, out) == (1, "")
    assert err == "cuckoo: no machine four, three; there is: one, two\n"


def test_where_nothing_is_configured_nothing_is_proven(
    cwd: Path, world: FakeHypervisor, typed: Typed
) -> None:
    configure(cwd)
    code, out, err = typed("check")
    assert (code, out) == (1, "")
    assert err.startswith("cuckoo: No machine is configured; 'cuckoo guest build' makes one")


def test_a_hypervisor_that_is_not_there_fails_its_machines(
    cwd: Path, world: FakeHypervisor, typed: Typed
) -> None:
    configure(cwd, "one")
    world.add("one")
    world.behave("open", Failing(MachineryError("no daemon")))
    code, out, _ = typed("check")
    assert code == 1
    assert "fake cannot be used: no daemon" in out


@pytest.mark.parametrize("words", [["check"], ["discover", "fake"]])
def test_while_a_server_runs_nothing_is_touched(
    cwd: Path, world: FakeHypervisor, typed: Typed, words: list[str]
) -> None:
    configure(cwd, "one")
    world.add("one")
    with engine_lock(cwd):
        code, out, err = typed(*words)
    assert (code, out) == (2, "")
    assert err == (
        "cuckoo: a server or another command has the machines: stop it first. "
        f"It runs on {cwd} (pid {os.getpid()})\n"
    )
    assert world.calls() == []


# -- discover -----------------------------------------------------------------------------------


def test_what_is_discovered_can_be_pasted(cwd: Path, world: FakeHypervisor, typed: Typed) -> None:
    configure(cwd, "one", active=False)
    world.add("one")
    win = world.add("Windows 7/x64", snapshots={"base": Snapshot(), "office": Snapshot()})
    win.ip = "192.168.55.20"
    world.add("old [x]").faults.append("it is locked")
    code, out, _ = typed("discover", "fake")

    assert code == 0
    assert out == (
        "# fake has 3 machine(s); 2 not configured yet.\n"
        "# [one] is there already: one\n"
        "# To use them, append their sections to conf/fake.conf, and in [fake] set:\n"
        "# machines = one, x64, old-x\n"
        "\n"
        "[x64]\n"
        "label = Windows 7/x64\n"
        "# The hypervisor does not tell: windows, linux or darwin.\n"
        "platform = linux\n"
        "ip = 192.168.55.20\n"
        "# One of: base, office\n"
        "snapshot = base\n"
        "\n"
        "# Trouble: it is locked\n"
        "[old-x]\n"
        "label = old [x]\n"
        "# The hypervisor does not tell: windows, linux or darwin.\n"
        "platform = linux\n"
        "# The guest's address, which the hypervisor does not know.\n"
        "ip = \n"
        "snapshot = clean\n"
    )
    path = cwd / "conf" / "fake.conf"
    text = with_value(path.read_text(), "fake", "machines", "one, x64")
    path.write_text(text + out)
    found = load_settings(cwd, [*load_plugins([fake_plugin(world)]).values()], machinery=["fake"])
    [_, x64] = found.machinery["fake"].machines
    assert (x64.label, x64.ip, x64.snapshot) == ("Windows 7/x64", "192.168.55.20", "base")


def test_a_program_reads_what_there_is(cwd: Path, world: FakeHypervisor, typed: Typed) -> None:
    configure(cwd, "one")
    world.add("one").uuid = "4711"
    world.add("two")
    code, out, _ = typed("discover", "fake", "--json")
    assert code == 0
    one, two = json.loads(out)
    assert (one["label"], one["configured"], one["uuid"]) == ("one", True, "4711")
    assert (two["label"], two["configured"], two["snapshots"]) == ("two", False, ["clean"])


def test_a_hypervisor_that_tells_only_labels(
    cwd: Path, world: FakeHypervisor, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = fake_plugin(world, capabilities=ALL & ~Capability.INSPECT)
    monkeypatch.setattr(machines, "load_plugins", lambda: load_plugins([less]))
    configure(cwd)
    world.add("one")
    _, out, _ = typed("discover", "fake")
    assert "label = one\n" in out
    assert "# Empty: the current one.\nsnapshot = \n" in out


def test_a_hypervisor_that_does_not_answer_is_said(
    cwd: Path, world: FakeHypervisor, typed: Typed
) -> None:
    configure(cwd)
    world.behave("labels", Failing(MachineryError("the session expired")))
    assert typed("discover", "fake") == (1, "", "cuckoo: the session expired\n")
    world.behave("open", Failing(MachineryError("no daemon")))
    assert typed("discover", "fake") == (1, "", "cuckoo: fake cannot be used: no daemon\n")
    code, _, err = typed("discover", "acme")
    assert code == 1
    assert err.startswith("cuckoo: no plugin for 'acme' is installed; there is: fake")


def test_a_machine_cannot_name_itself_into_the_configuration() -> None:
    evil = "x\n[cuckoo]\napi_token ="
    text = conf("kvm", [Found(evil, MachineFacts(snapshots=("a\nb",), faults=("c\x1b[2J",)))], {})
    assert "# Its label cannot be written into a file: rename the machine.\n" in text
    lines = [line for line in text.splitlines() if line.startswith("[")]
    assert lines == ["[x-cuckoo-api_token]"]
    assert "\x1b" not in text


def test_no_two_sections_have_one_name() -> None:
    found = [Found(label, None) for label in ("a/vm", "b/vm", "kvm", "///", "vm-2")]
    text = conf("kvm", found, {"other": "vm"})
    sections = [line for line in text.splitlines() if line.startswith("[")]
    assert sections == ["[vm-2]", "[vm-3]", "[kvm-2]", "[machine]", "[vm-2-2]"]
