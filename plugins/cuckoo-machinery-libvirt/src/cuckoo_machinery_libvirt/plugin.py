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
    # some drivers take a password in it
    Option("dsn", "qemu:///system", "libvirt's URI.", secret=True),
    Option(
        "dump_format",
        "raw",
        "What a memory dump is written as.",
        ("raw", "kdump-zlib", "kdump-lzo", "kdump-snappy"),
    ),
)


def _backend(config: BackendConfig) -> MachineryBackend:
    from cuckoo_machinery_libvirt.backend import LibvirtBackend

    return LibvirtBackend(config)


@hookimpl
def cuckoo_register_machinery() -> MachineryPlugin:
    """libvirt, for contract version 1."""
    return MachineryPlugin(
        name="kvm",
        api_version=(1, 0),
        backend=_backend,
        options=OPTIONS,
        default_conf=Path(__file__).with_name("kvm.conf").read_text(encoding="utf-8"),
    )
