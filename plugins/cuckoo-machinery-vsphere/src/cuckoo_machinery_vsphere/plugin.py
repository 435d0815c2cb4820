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
    Option("host", "", "The vCenter or ESXi host."),
    Option("port", "443", "Its port."),
    Option("user", "", "Who logs in."),
    Option("pwd", "", "The user's password.", secret=True),
    Option("credentials", "", "A file with lines `user = ...` and `pwd = ...` instead."),
    Option("ca_file", "", "The authorities that may have signed the certificate, PEM."),
    Option("thumbprint", "", "The SHA-256 thumbprint that the certificate has to have."),
    Option("unverified_ssl", "no", "Whether to check no certificate at all.", ("no", "yes")),
    Option("timeout", "10", "Seconds to wait for an answer."),
    Option("task_timeout", "300", "Seconds to wait for a task: a revert, a power-on, a snapshot."),
)


def _backend(config: BackendConfig) -> MachineryBackend:
    from cuckoo_machinery_vsphere.backend import VsphereBackend

    return VsphereBackend(config)


@hookimpl
def cuckoo_register_machinery() -> MachineryPlugin:
    """vSphere, for contract version 1."""
    return MachineryPlugin(
        name="vsphere",
        api_version=(1, 0),
        backend=_backend,
        options=OPTIONS,
        default_conf=Path(__file__).with_name("vsphere.conf").read_text(encoding="utf-8"),
    )
