"""A capture by whoever can; one that cannot be made is a sentence, not a failure."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from capturekit import Machine, children, module

from cuckoo_api.machinery import Capability
from cuckoo_api.network import capture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump.pcap"


async def test_the_hypervisor_captures_where_it_can(path: Path) -> None:
    machine = Machine(Capability.CAPTURE)
    async with capture(machine, path, "lo", "127.0.0.1") as errors:
        assert machine.calls == ["start dump.pcap"]
        assert "tcpdump" not in children()
    assert (machine.calls[-1], errors) == ("stop", [])


async def test_an_analysis_goes_on_without_its_capture(path: Path) -> None:
    async with capture(Machine(Capability.CAPTURE, fails=True), path, "", "127.0.0.1") as errors:
        assert errors == ["No capture of the network: it is off"]
    async with capture(Machine(), path, "", "127.0.0.1") as errors:
        assert errors == ["No capture of the network: the machine has no interface configured"]


@pytest.mark.parametrize(("there", "missing"), [(["prlimit"], "tcpdump"), ([], "prlimit")])
async def test_a_program_is_not_installed(
    path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], missing: str
) -> None:
    programs = path.parent / "bin"
    programs.mkdir()
    for name in there:
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    async with capture(Machine(), path, "lo", "127.0.0.1") as errors:
        assert len(errors) == 1
        assert f"{missing}: No such file or directory" in errors[0]
        assert not path.exists()


async def test_a_link_in_the_way_is_not_followed(path: Path) -> None:
    path.symlink_to(path.parent / "outside")
    async with capture(Machine(), path, "lo", "127.0.0.1") as errors:
        assert errors == [f"No capture of the network: {path}: File exists"]
    assert not (path.parent / "outside").exists()


async def test_a_cancelled_start_leaves_no_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a tcpdump that never says that it listens
    fake = path.parent / "tcpdump"
    fake.write_text("#!/bin/sh\necho wait >&2\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    async def start() -> None:
        async with capture(Machine(), path, "lo", "127.0.0.1"):
            raise AssertionError("it does not listen")

    starting = asyncio.create_task(start())
    async with asyncio.timeout(5):
        while not path.exists() or "sleep" not in children():
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not children().keys() & {"sleep", "tcpdump"}


async def test_a_tcpdump_that_does_not_listen_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT", 0.05)
    fake = path.parent / "tcpdump"
    fake.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.05; done\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.05)
    async with capture(Machine(), path, "lo", "127.0.0.1") as errors:
        assert errors == ["No capture of the network: tcpdump did not start"]
    assert "tcpdump" not in children()
