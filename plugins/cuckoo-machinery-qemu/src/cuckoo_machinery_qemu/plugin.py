"""The entry point: describes the machinery to the core, and imports no more than that needs."""

from __future__ import annotations

from pathlib import Path

from cuckoo_api.machinery import (
    BackendConfig,
    MachineryBackend,
    MachineryPlugin,
    Option,
    hookimpl,
)

OPTIONS = (
    Option("path", "/usr/bin/qemu-system-x86_64", "The QEMU program."),
    Option("network", "auto", "How guests are connected.", ("auto", "bridge", "user")),
    Option("accel", "auto", "The accelerator.", ("auto", "kvm", "tcg")),
    Option("uid_base", "64800", "The first machine's user id, when run by root."),
)
MACHINE_OPTIONS = (
    Option("image", "", "The disk image, qcow2 or raw; never written to."),
    Option("arch", "x64", "The guest's architecture.", ("x64", "x86", "arm64")),
    Option("kernel", "", "A Linux kernel to start directly; empty: the disk boots."),
    Option("initrd", "", "The initial ramdisk for it."),
    Option("append", "", "The kernel's command line."),
    Option("memory", "256", "MiB of memory."),
    Option("cpus", "1", "Virtual processors."),
)


def _backend(config: BackendConfig) -> MachineryBackend:
    from cuckoo_machinery_qemu.backend import QemuBackend

    return QemuBackend(config)


@hookimpl
def cuckoo_register_machinery() -> MachineryPlugin:
    """QEMU, for contract version 1.1: its guests may have the rooter's taps."""
    return MachineryPlugin(
        name="qemu",
        api_version=(1, 1),
        backend=_backend,
        options=OPTIONS,
        machine_options=MACHINE_OPTIONS,
        default_conf=Path(__file__).with_name("qemu.conf").read_text(encoding="utf-8"),
    )
