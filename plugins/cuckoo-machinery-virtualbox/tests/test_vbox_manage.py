"""VBoxManage as a child process: no shell, no foreign words, no end that does not come."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from vboxkit import RECORDED, Answer, Program, config_for

from cuckoo_api.machinery import (
    BackendUnavailable,
    BadConfig,
    MachineNotFound,
    MachineryError,
    OperationTimedOut,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend
from cuckoo_machinery_virtualbox.info import MachineInfo, interfaces, listed
from cuckoo_machinery_virtualbox.manage import VBoxManage, failure


def script(folder: Path, text: str) -> VBoxManage:
    """A VBoxManage that is a shell script, as Debian's is."""
    path = folder / "VBoxManage"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return VBoxManage(path)


async def test_words_arrive_as_they_are(tmp_path: Path) -> None:
    words = ["snapshot", "$(touch x)", "take", "a 'b' \"c\"; *", "\u00e9\n"]
    came: list[str] = []

    def answer(said: object) -> Answer:
        came.extend(said)  # type: ignore[call-overload]  # a sequence of words
        return Answer("done\n")

    with Program(tmp_path, answer) as program:
        assert await VBoxManage(program.path).run(*words, timeout=10) == "done\n"
    assert came == words


async def test_it_speaks_english_and_learns_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("CUCKOO_TOKEN", "sekret")
    monkeypatch.setenv("VBOX_USER_HOME", "/srv/vbox")
    shown = await script(tmp_path, "env").run(timeout=10)
    assert "LC_ALL=C\n" in shown
    assert "VBOX_USER_HOME=/srv/vbox\n" in shown
    assert "LANG=" not in shown
    assert "sekret" not in shown


async def test_one_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    manage = script(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(OperationTimedOut, match=r"VBoxManage list vms: no end after 0\.5 s"):
        await manage.run("list", "vms", timeout=0.5)
    await _ended(int((tmp_path / "pid").read_text()))


async def test_one_that_is_given_up_is_killed(tmp_path: Path) -> None:
    manage = script(
        tmp_path, f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; read x"
    )
    asking = asyncio.create_task(manage.run("list", "vms", timeout=100))
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    await _ended(int((tmp_path / "pid").read_text()))


async def _ended(pid: int) -> None:
    async with asyncio.timeout(10):
        while _lives(pid):
            await asyncio.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "VBoxManage"
    with pytest.raises(BadConfig, match=r"install VirtualBox, or set \[virtualbox\] path"):
        await VirtualBoxBackend(config_for(path, tmp_path)).open()
    with pytest.raises(BackendUnavailable, match="No such file or directory"):
        await VBoxManage(path).run(timeout=1)


@pytest.mark.parametrize(
    ("recorded", "kind", "text"),
    [
        ("021-showvminfo-unknown", MachineNotFound,
         "Could not find a registered machine named 'nosuchvm' (VBOX_E_OBJECT_NOT_FOUND)"),
        ("031-snapshot-restore-none", SnapshotNotFound,
         "This machine does not have any snapshots (VBOX_E_OBJECT_NOT_FOUND)"),
        ("118-snapshot-restore-unknown", SnapshotNotFound,
         "Could not find a snapshot named 'nosuch' (VBOX_E_OBJECT_NOT_FOUND)"),
        ("030-snapshot-restorecurrent-none", SnapshotNotFound,
         "This machine does not have any snapshots"),
        ("025-controlvm-poweroff-off", WrongState, "Machine 'win7x64' is not currently running."),
        ("104-snapshot-restore-while-running", WrongState,
         ("Cannot delete the current state of the running machine (machine state: Running) "
          "(VBOX_E_INVALID_VM_STATE)")),
        ("061-debugvm-dumpvmcore-exists", MachineryError,
         "DBGFR3CoreWrite failed with VERR_ALREADY_EXISTS (NS_ERROR_FAILURE)"),
    ],
)  # fmt: skip
def test_a_failure_is_told_in_its_own_words(
    recorded: str, kind: type[MachineryError], text: str
) -> None:
    record = RECORDED[recorded]
    error = failure("VBoxManage x", record["rc"], record["stdout"], record["stderr"])
    assert type(error) is kind
    assert str(error) == f"VBoxManage x: {text}"


def test_without_vboxsvc_virtualbox_is_not_there() -> None:
    said = (
        "VBoxManage: error: Failed to create the VirtualBox object!\n"
        "VBoxManage: error: Code NS_ERROR_FACTORY_NOT_REGISTERED (0x80040154) - Class not "
        "registered (extended info not available)\n"
        "VBoxManage: error: Most likely, the VirtualBox COM server is not running or failed to "
        "start.\n"
    )
    error = failure("VBoxManage list vms", 1, "", said)
    assert isinstance(error, BackendUnavailable)
    assert "(NS_ERROR_FACTORY_NOT_REGISTERED)" in str(error)


def test_a_machine_between_two_states_is_in_the_wrong_one() -> None:
    said = (
        "VBoxManage: error: Failed to get a console object from the direct session "
        "(VBOX_E_INVALID_OBJECT_STATE)\n"
        "VBoxManage: error: Details: code VBOX_E_VM_ERROR (0x80bb0003), component MachineWrap, "
        "interface IMachine, callee nsISupports\n"
    )
    error = failure("VBoxManage x", 1, "", said)
    assert isinstance(error, WrongState)
    assert str(error).endswith("(VBOX_E_INVALID_OBJECT_STATE) (VBOX_E_VM_ERROR)")


def test_a_failure_without_a_word() -> None:
    assert str(failure("VBoxManage x", 7, "", "")) == "VBoxManage x: exit code 7"


def test_names_are_read_whatever_they_have_in_them() -> None:
    uuid = "dd29bcc1-596a-4c2c-8a2f-66f74cacea58"
    assert listed(f'WARNING: no driver\n"a "b" {{c}}" {{{uuid}}}\n') == [('a "b" {c}', uuid)]
    shown = "Name:            vboxnet0\nGUID:  x\n\nName:            vboxnet1\n"
    assert interfaces(shown) == ["vboxnet0", "vboxnet1"]


@pytest.mark.parametrize(
    ("ostype", "platform"),
    [
        ("Windows 7 (64-bit)", "windows"),
        ("macOS 10.13 High Sierra (64-bit)", "darwin"),
        ("Ubuntu 24.04 LTS (Noble Numbat) (64-bit)", "linux"),
        ("openSUSE Leap (64-bit)", "linux"),
        ("Other/Unknown", ""),
    ],
)
def test_the_platform_is_virtualbox_s_kind_of_guest(ostype: str, platform: str) -> None:
    info = MachineInfo("a", "", "", "", "", Path(), Path(), ostype=ostype)
    assert info.platform == platform


async def test_a_bounded_wait_is_bounded(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="VirtualBox does not answer"):
        await script(tmp_path, "read x </dev/zero").ask("list", "vms", timeout=0.2)
    assert time.monotonic() - began < 5
