"""A machine's configuration, checked, and the QEMU command line made from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cuckoo_api.machinery import BadConfig, MachineConfig

ARCHITECTURES = {
    "x64": ("qemu-system-x86_64", "pc"),
    "x86": ("qemu-system-i386", "pc"),
    "arm64": ("qemu-system-aarch64", "virt"),
}
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
MONITOR = "socket,id=monitor,fd="
"""The word behind which QEMU's end of the monitor's socket pair is put when it is started. A number
in its place would be found in others: fd=3 in fd=34."""
STATE_NODE = "vmstate"
"""The block node that carries a snapshot's memory; no device of the guest is on it."""
CONSOLE_SIZE = 64 << 10


@dataclass(frozen=True, slots=True)
class Place:
    """One machine's place among the others, as the network needs to know it."""

    label: str
    index: int
    ip: str
    gateway: str

    @property
    def mac(self) -> str:
        """Made from the label: the same at every start, so that a live snapshot fits."""
        digest = hashlib.sha256(self.label.encode()).digest()
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])

    @property
    def tap(self) -> str:
        """The tap's name in bridge mode, at most 15 characters."""
        return "ck" + hashlib.sha256(self.label.encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class MachineSpec(Place):
    """One machine, as QEMU needs to know it."""

    program: Path
    machine: str
    image: Path
    image_format: str
    kernel: Path | None
    initrd: Path | None
    append: str
    memory: int
    """MiB."""
    cpus: int

    def identity(self, *, accel: str, network: str, version: str) -> dict[str, str]:
        """What must be as it was for a live snapshot to fit."""
        parts = [self.machine, str(self.memory), str(self.cpus), self.append, self.ip, self.gateway]
        image = self.image.stat()
        return {
            "qemu": version,
            "accelerator": accel,
            "network": network,
            "hardware": hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16],
            "image": f"{self.image} {image.st_size} {image.st_mtime_ns}",
        }


def machine_spec(config: MachineConfig, index: int, path: Path) -> MachineSpec:
    """Check one machine's options. Raises BadConfig: what is wrong, and what to do."""
    options = config.options
    name, machine = ARCHITECTURES[options["arch"]]
    program = path.with_name(name) if options["arch"] != "x64" else path
    if not program.is_file():
        raise BadConfig(
            f"{config.name}: there is no {program}; install it (apt-get install qemu-system-x86) "
            "or set [qemu] path"
        )
    if not options["image"]:
        raise BadConfig(f"{config.name}: no image is set; run 'cuckoo guest build' or set one")
    files = {
        key: Path(options[key]).expanduser().absolute()
        for key in ("image", "kernel", "initrd")
        if options[key]
    }
    for key, file in files.items():
        if not file.is_file():
            raise BadConfig(f"{config.name}: {key} = {file} is not there; run 'cuckoo guest build'")
    numbers = {}
    for key, low, high in (("memory", 16, 1 << 20), ("cpus", 1, 255)):
        text = options[key]
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise BadConfig(f"{config.name}: {key} = {text!r}; allowed: {low} to {high}")
        numbers[key] = int(text)
    with files["image"].open("rb") as image:
        image_format = "qcow2" if image.read(4) == b"QFI\xfb" else "raw"
    return MachineSpec(
        label=config.label,
        index=index,
        ip=config.ip,
        gateway=config.resultserver_ip,
        program=program,
        machine=machine,
        image=files["image"],
        image_format=image_format,
        kernel=files.get("kernel"),
        initrd=files.get("initrd"),
        append=options["append"],
        memory=numbers["memory"],
        cpus=numbers["cpus"],
    )


@dataclass(frozen=True, slots=True)
class Drive:
    """One read-only layer below the overlay: an open descriptor and its format."""

    fd: int
    image_format: str


def command_line(
    spec: MachineSpec,
    *,
    accel: str,
    layers: list[Drive],
    netdev: str,
    state: bool,
) -> list[str]:
    """QEMU's arguments. It starts paused, in its run folder, with ``overlay.qcow2`` there.

    ``layers`` goes from the image up; ``state`` says that ``state.qcow2`` is there too.
    """
    args = [
        str(spec.program), "-name", f"cuckoo-{spec.label}".replace(",", ",,"),
        "-no-user-config", "-nodefaults", "-sandbox", SANDBOX, "-display", "none",
        "-M", f"{spec.machine},accel={accel}", "-m", str(spec.memory), "-smp", str(spec.cpus),
        "-S", "-rtc", "base=utc",
        "-chardev", MONITOR, "-mon", "chardev=monitor,mode=control",
        "-chardev", f"ringbuf,id=console,size={CONSOLE_SIZE}", "-serial", "chardev:console",
        "-device", "VGA" if spec.machine == "pc" else "virtio-gpu-pci",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    if accel == "kvm":
        args += ["-cpu", "host"]
    if spec.kernel:
        words = f"{spec.append} guestip={spec.ip}/24 guestgw={spec.gateway} guestdns={spec.gateway}"
        args += ["-kernel", str(spec.kernel), "-append", words.strip()]
        if spec.initrd:
            args += ["-initrd", str(spec.initrd)]
    below = ""
    for number, layer in enumerate(layers):
        args += ["-add-fd", f"fd={layer.fd},set={number}"]
        file = {"driver": "file", "filename": f"/dev/fdset/{number}", "read-only": True}
        node = {
            "driver": layer.image_format,
            "node-name": f"layer{number}",
            "read-only": True,
            "file": file,
        }
        if layer.image_format == "qcow2":
            node["backing"] = below or None
        args += ["-blockdev", json.dumps(node)]
        below = f"layer{number}"
    overlay = {
        "driver": "qcow2",
        "node-name": "disk",
        "backing": below,
        "discard": "unmap",
        "file": {"driver": "file", "filename": "overlay.qcow2"},
    }
    args += ["-blockdev", json.dumps(overlay), "-device", "virtio-blk-pci,drive=disk"]
    if state:
        node = {
            "driver": "qcow2",
            "node-name": STATE_NODE,
            "file": {"driver": "file", "filename": "state.qcow2"},
        }
        args += ["-blockdev", json.dumps(node)]
    return [
        *args,
        "-netdev", netdev,
        "-device", f"virtio-net-pci,netdev=net0,mac={spec.mac},romfile=",
    ]  # fmt: skip
