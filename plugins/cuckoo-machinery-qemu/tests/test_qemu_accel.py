"""Whether KVM is used: only where a machine truly boots with it, and tried but once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from cuckoo_machinery_qemu import accel
from cuckoo_machinery_qemu.accel import choose_accelerator
from cuckoo_machinery_qemu.spec import MachineSpec

BOOTS = "echo '[    0.9] Run /init as init process'; exec sleep 60"
HANGS = "echo 'Booting from ROM..'; exec sleep 60"
DIES = "exit 1"
Qemu = Callable[[str], MachineSpec]


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    """A machine whose QEMU does as told; it counts its starts in ``starts``."""
    for name in ("kernel", "initrd"):
        (tmp_path / name).touch()

    def make(behaviour: str) -> MachineSpec:
        program = tmp_path / "qemu"
        program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\n{behaviour}\n")
        program.chmod(0o755)
        return MachineSpec(
            label="one",
            index=0,
            ip="",
            gateway="",
            program=program,
            machine="pc",
            image=tmp_path / "image",
            image_format="raw",
            kernel=tmp_path / "kernel",
            initrd=tmp_path / "initrd",
            append="",
            memory=256,
            cpus=1,
        )

    return make


@pytest.fixture(autouse=True)
def _kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that can be opened, which proves little."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(accel, "PROBE_TIMEOUT", 1.0)


async def choose(tmp_path: Path, *specs: MachineSpec, version: str = "7.2") -> tuple[str, int]:
    """The answer, and how often a machine has been tried by now."""
    answer = await choose_accelerator("auto", specs, version, tmp_path / "cache.json")
    starts = tmp_path / "starts"
    return answer, len(starts.read_text().split()) if starts.exists() else 0


async def test_kvm_where_a_kernel_comes_to_its_init(tmp_path: Path, qemu: Qemu) -> None:
    assert await choose(tmp_path, qemu(BOOTS)) == ("kvm", 1)


@pytest.mark.parametrize("behaviour", [HANGS, DIES])
async def test_tcg_where_it_does_not(tmp_path: Path, qemu: Qemu, behaviour: str) -> None:
    assert await choose(tmp_path, qemu(behaviour)) == ("tcg", 1)


async def test_the_answer_is_remembered(tmp_path: Path, qemu: Qemu) -> None:
    assert await choose(tmp_path, qemu(DIES)) == ("tcg", 1)
    assert await choose(tmp_path, qemu(BOOTS)) == ("tcg", 1)


async def test_another_qemu_and_another_kernel_are_tried_again(tmp_path: Path, qemu: Qemu) -> None:
    await choose(tmp_path, qemu(DIES))
    assert await choose(tmp_path, qemu(BOOTS), version="8.0") == ("kvm", 2)
    (tmp_path / "kernel").unlink()
    (tmp_path / "kernel").touch()
    assert await choose(tmp_path, qemu(BOOTS), version="8.0") == ("kvm", 3)


async def test_a_spoilt_memory_is_no_memory(tmp_path: Path, qemu: Qemu) -> None:
    for spoilt in ("", "{", "[]", "7", '{"key": 1}'):
        (tmp_path / "cache.json").write_text(spoilt)
        (tmp_path / "starts").unlink(missing_ok=True)
        assert await choose(tmp_path, qemu(BOOTS)) == ("kvm", 1), spoilt


async def test_tcg_without_the_device(tmp_path: Path, qemu: Qemu) -> None:
    (tmp_path / "kvm").unlink()
    assert await choose(tmp_path, qemu(BOOTS)) == ("tcg", 0)


async def test_without_a_kernel_to_try_kvm_is_trusted(tmp_path: Path, qemu: Qemu) -> None:
    spec = dataclasses.replace(qemu(DIES), kernel=None)
    assert await choose(tmp_path, spec) == ("kvm", 0)


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
async def test_a_choice_by_hand_is_final(tmp_path: Path, qemu: Qemu, wanted: str) -> None:
    specs = [qemu(DIES)]
    assert await choose_accelerator(wanted, specs, "7.2", tmp_path / "cache.json") == wanted
    assert not (tmp_path / "starts").exists()
