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
    Option("mode", "headless", "Whether machines are shown.", ("headless", "gui")),
    Option("path", "/usr/bin/VBoxManage", "The VBoxManage program."),
)


def _backend(config: BackendConfig) -> MachineryBackend:
    from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend

    return VirtualBoxBackend(config)


@hookimpl
def cuckoo_register_machinery() -> MachineryPlugin:
    """VirtualBox, for contract version 1."""
    return MachineryPlugin(
        name="virtualbox",
        api_version=(1, 0),
        backend=_backend,
        options=OPTIONS,
        default_conf=Path(__file__).with_name("virtualbox.conf").read_text(encoding="utf-8"),
    )
