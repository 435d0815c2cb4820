"""How a plugin makes itself known: one pluggy hook behind one entry point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pluggy

from cuckoo_api.machinery.backend import MachineryBackend
from cuckoo_api.machinery.types import BackendConfig, Option

PROJECT_NAME = "cuckoo_api"
"""The pluggy project name and the entry-point group."""

API_VERSION = (1, 1)
"""This contract's version. A plugin made for another major number is refused by name; what has been
added since its first minor one says so."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@dataclass(frozen=True, slots=True)
class MachineryPlugin:
    """What :func:`cuckoo_register_machinery` returns."""

    name: str
    """The word for ``[cuckoo] machinery``; ``conf/<name>.conf`` and its section ``[<name>]``."""
    api_version: tuple[int, int]
    backend: Callable[[BackendConfig], MachineryBackend]
    options: tuple[Option, ...] = ()
    """The plugin's keys in section ``[<name>]``, besides ``machines`` and ``interface``."""
    machine_options: tuple[Option, ...] = ()
    """The plugin's keys in each machine's section."""
    default_conf: str = ""
    """The commented ``conf/<name>.conf`` that ``cuckoo init`` writes."""


class MachineryHooks:
    """The hooks that the core calls."""

    @hookspec
    def cuckoo_register_machinery(self) -> MachineryPlugin:
        """Describe one machinery. Called once at start-up; no I/O, no import of a heavy binding."""
        raise AssertionError("a specification, never called")
