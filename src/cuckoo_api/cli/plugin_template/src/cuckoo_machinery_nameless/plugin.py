"""The entry point: describes the machinery to the server, and imports no more than that needs."""

from __future__ import annotations

from pathlib import Path

from cuckoo_api.machinery import (
    BackendConfig,
    MachineryBackend,
    MachineryPlugin,
    Option,
    hookimpl,
)

# The keys of [nameless] in conf/nameless.conf, besides `machines` and `interface`.
OPTIONS = (Option("url", "", "Where the hypervisor answers."),)
# The keys of each machine's section, besides those that every machine has.
MACHINE_OPTIONS: tuple[Option, ...] = ()


def _backend(config: BackendConfig) -> MachineryBackend:
    # here and not above: a binding that is missing or slow must not keep the server from starting
    from cuckoo_machinery_nameless.backend import NamelessBackend

    return NamelessBackend(config)


@hookimpl
def cuckoo_register_machinery() -> MachineryPlugin:
    """Nameless, for contract version 1."""
    return MachineryPlugin(
        name="nameless",
        api_version=(1, 0),
        backend=_backend,
        options=OPTIONS,
        machine_options=MACHINE_OPTIONS,
        default_conf=Path(__file__).with_name("nameless.conf").read_text(encoding="utf-8"),
    )
