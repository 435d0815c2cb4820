"""What QEMU is told: few devices, few rights, and nothing below the overlay to write to."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from cuckoo_api.machinery import BadConfig, MachineConfig
from cuckoo_machinery_qemu.plugin import MACHINE_OPTIONS
from cuckoo_machinery_qemu.spec import Drive, MachineSpec, command_line, machine_spec


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A machine's options, with files that exist."""
    for name in ("qemu-system-x86_64", "qemu-system-aarch64", "kernel", "initrd"):
        (tmp_path / name).write_bytes(b"\x7fELF")
    (tmp_path / "image").write_bytes(b"QFI\xfb and more")
    options = {option.name: option.default for option in MACHINE_OPTIONS}
    return options | {name: str(tmp_path / name) for name in ("image", "kernel", "initrd")}


def spec_of(tmp_path: Path, options: dict[str, str], label: str = "one") -> MachineSpec:
    config = MachineConfig(
        label=label, name="win7", ip="10.3.2.11", resultserver_ip="10.3.2.1", options=options
    )
    return machine_spec(config, 0, tmp_path / "qemu-system-x86_64")


@pytest.fixture
def spec(tmp_path: Path, files: dict[str, str]) -> MachineSpec:
    return spec_of(tmp_path, files)


def words(spec: MachineSpec, *layers: Drive, accel: str = "tcg") -> list[str]:
    return command_line(
        spec,
        accel=accel,
        layers=list(layers) or [Drive(7, "raw")],
        netdev="tap,id=net0,fd=5",
        state=True,
    )


def values(command: list[str], option: str) -> list[str]:
    """What follows each occurrence of an option."""
    return [after for word, after in itertools.pairwise(command) if word == option]


def nodes(command: list[str]) -> dict[str, dict[str, object]]:
    """The block nodes by name."""
    made = map(json.loads, values(command, "-blockdev"))
    return {str(node["node-name"]): node for node in made}


# -- rights ---------------------------------------------------------------------------------------


def test_the_sandbox_denies_everything_it_can(spec: MachineSpec) -> None:
    [sandbox] = values(words(spec), "-sandbox")
    on, *denied = sandbox.split(",")
    assert on == "on"
    assert set(denied) == {
        f"{what}=deny" for what in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
    }


def test_nothing_is_there_by_default(spec: MachineSpec) -> None:
    command = words(spec)
    assert {"-nodefaults", "-no-user-config", "-S"} <= set(command)
    assert values(command, "-display") == ["none"]
    devices = [device.split(",")[0] for device in values(command, "-device")]
    assert devices == ["VGA", "virtio-rng-pci", "virtio-blk-pci", "virtio-net-pci"]
    # the monitor is the only way in, by a descriptor that QEMU inherits
    assert values(command, "-mon") == ["chardev=monitor,mode=control"]
    assert [c.split(",")[0] for c in values(command, "-chardev")] == ["socket", "ringbuf"]


# -- disks ----------------------------------------------------------------------------------------


def test_only_the_overlay_and_the_memory_can_be_written_to(spec: MachineSpec) -> None:
    command = words(spec, Drive(7, "raw"), Drive(8, "qcow2"))
    made = nodes(command)
    assert set(made) == {"layer0", "layer1", "disk", "vmstate"}
    for number, fd in enumerate((7, 8)):
        layer = made[f"layer{number}"]
        assert layer["read-only"] is True
        assert layer["file"] == {
            "driver": "file",
            "filename": f"/dev/fdset/{number}",
            "read-only": True,
        }
        assert f"fd={fd},set={number}" in values(command, "-add-fd")
    assert (made["layer0"].get("backing"), made["layer1"]["backing"]) == (None, "layer0")
    assert made["disk"]["backing"] == "layer1"
    written = {name: made[name]["file"] for name in ("disk", "vmstate")}
    assert written == {
        "disk": {"driver": "file", "filename": "overlay.qcow2"},
        "vmstate": {"driver": "file", "filename": "state.qcow2"},
    }


def test_an_image_s_own_backing_file_is_not_followed(spec: MachineSpec) -> None:
    made = nodes(words(spec, Drive(7, "qcow2")))
    assert made["layer0"]["backing"] is None


@pytest.mark.parametrize(("content", "kind"), [(b"QFI\xfb", "qcow2"), (b"\0" * 512, "raw")])
def test_the_image_s_format_is_what_it_is_not_what_its_name_says(
    tmp_path: Path, files: dict[str, str], content: bytes, kind: str
) -> None:
    Path(files["image"]).write_bytes(content)
    assert spec_of(tmp_path, files).image_format == kind


# -- the machine ----------------------------------------------------------------------------------


def test_a_name_with_commas_stays_one_name(spec: MachineSpec) -> None:
    odd = dataclasses.replace(spec, label="a,debug-threads=on")
    assert values(words(odd), "-name") == ["cuckoo-a,,debug-threads=on"]


def test_the_kernel_is_told_the_guest_s_addresses(tmp_path: Path, files: dict[str, str]) -> None:
    command = words(spec_of(tmp_path, files | {"append": "quiet root=/dev/vda"}))
    assert values(command, "-append") == [
        "quiet root=/dev/vda guestip=10.3.2.11/24 guestgw=10.3.2.1 guestdns=10.3.2.1"
    ]


def test_without_a_kernel_the_disk_boots(tmp_path: Path, files: dict[str, str]) -> None:
    command = words(spec_of(tmp_path, files | {"kernel": "", "initrd": ""}))
    assert not {"-kernel", "-initrd", "-append"} & set(command)


def test_kvm_passes_the_host_s_processor_on(spec: MachineSpec) -> None:
    assert values(words(spec, accel="kvm"), "-cpu") == ["host"]
    assert values(words(spec, accel="kvm"), "-M") == ["pc,accel=kvm"]
    assert values(words(spec), "-cpu") == []


def test_another_architecture_has_its_own_program_and_machine(
    tmp_path: Path, files: dict[str, str]
) -> None:
    command = words(spec_of(tmp_path, files | {"arch": "arm64"}))
    assert command[0] == str(tmp_path / "qemu-system-aarch64")
    assert values(command, "-M") == ["virt,accel=tcg"]
    assert "virtio-gpu-pci" in values(command, "-device")


def test_each_label_has_its_own_addresses_and_keeps_them(
    tmp_path: Path, files: dict[str, str]
) -> None:
    one, again, two = (spec_of(tmp_path, files, label) for label in ("one", "one", "two"))
    assert (one.mac, one.tap) == (again.mac, again.tap)
    assert {one.mac, one.tap}.isdisjoint({two.mac, two.tap})
    assert len(spec_of(tmp_path, files, "x" * 64).tap) <= 15
    assert f"virtio-net-pci,netdev=net0,mac={one.mac},romfile=" in values(words(one), "-device")


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"image": ""}, "win7: no image is set; run 'cuckoo guest build'"),
        ({"image": "/no/such"}, "win7: image = /no/such is not there"),
        ({"kernel": "/no/such"}, "win7: kernel = /no/such is not there"),
        ({"memory": "lots"}, "win7: memory = 'lots'; allowed: 16 to 1048576"),
        ({"memory": "15"}, "allowed: 16 to"),
        ({"memory": "٢٥٦"}, "allowed: 16 to"),
        ({"cpus": "0"}, "win7: cpus = '0'; allowed: 1 to 255"),
        ({"arch": "x86"}, r"qemu-system-i386; install it \(apt-get install qemu-system-x86\)"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    tmp_path: Path, files: dict[str, str], changed: dict[str, str], complaint: str
) -> None:
    with pytest.raises(BadConfig, match=complaint):
        spec_of(tmp_path, files | changed)


# -- snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_fits_only_the_machine_it_was_taken_of(
    tmp_path: Path, files: dict[str, str]
) -> None:
    where = {"accel": "tcg", "network": "bridge", "version": "7.2"}
    before = spec_of(tmp_path, files).identity(**where)
    assert spec_of(tmp_path, files).identity(**where) == before

    def changed(options: dict[str, str] | None = None, **now: str) -> set[str]:
        identity = spec_of(tmp_path, files | (options or {})).identity(**where | now)
        return {key for key, value in identity.items() if before[key] != value}

    assert changed({"memory": "512"}) == {"hardware"}
    assert changed({"cpus": "2"}) == {"hardware"}
    assert changed(accel="kvm") == {"accelerator"}
    assert changed(network="user") == {"network"}
    assert changed(version="8.0") == {"qemu"}
    Path(files["image"]).write_bytes(b"QFI\xfb and something else")
    assert changed() == {"image"}
