"""Machinery plugins: from entry points to checked descriptions, each in its own guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points

import pluggy
import structlog

from cuckoo_api.machinery import API_VERSION, PROJECT_NAME, MachineryHooks, MachineryPlugin

log = structlog.get_logger()

_HOOK = "cuckoo_register_machinery"


class PluginRefused(Exception):
    """A plugin that cannot be used; the text says why."""


def load_plugins(extra: Sequence[object] = ()) -> dict[str, MachineryPlugin]:
    """The usable machinery plugins by their own name.

    ``extra`` are plugin objects besides those of the entry-point group ``cuckoo_api``; they come
    first. A plugin that fails to load, has a misspelt hook, speaks another major version of the
    contract or takes a name that is taken is logged by name, and the rest work.
    """
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(MachineryHooks)
    plugins: dict[str, MachineryPlugin] = {}
    for name, source in _sources(extra):
        try:
            plugin = _describe(manager, name, source)
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's plugin raises is its own
            _refuse(name, f"{type(exc).__name__}: {exc}")
            continue
        if plugin.name in plugins:
            _refuse(name, f"another plugin has registered the machinery {plugin.name!r}")
            continue
        plugins[plugin.name] = plugin
        log.debug("plugin.loaded", plugin=name, machinery=plugin.name)
    return plugins


def _sources(extra: Sequence[object]) -> Iterator[tuple[str, object]]:
    for number, plugin in enumerate(extra):
        yield getattr(plugin, "__name__", f"{type(plugin).__name__}-{number}"), plugin
    # sorted: which of two plugins keeps a name must not depend on the order of a directory
    for point in sorted(entry_points(group=PROJECT_NAME), key=lambda p: (p.name, p.value)):
        yield _title(point), point


def _describe(manager: pluggy.PluginManager, name: str, source: object) -> MachineryPlugin:
    module = source.load() if isinstance(source, EntryPoint) else source
    try:
        manager.register(module, name)
        manager.check_pending()
        others = manager.get_plugins() - {module}
        answers = manager.subset_hook_caller(_HOOK, others)()
    except BaseException:
        if manager.has_plugin(name):  # else every later check_pending() would blame the next one
            manager.unregister(name=name)
        raise
    if not answers:
        raise PluginRefused(f"it has no hook {_HOOK}()")
    return _check(answers[0])


def _check(plugin: object) -> MachineryPlugin:
    if not isinstance(plugin, MachineryPlugin):
        raise PluginRefused(f"{_HOOK}() returned {type(plugin).__name__}, not MachineryPlugin")
    if plugin.api_version[0] != API_VERSION[0]:
        theirs, ours = (".".join(map(str, v)) for v in (plugin.api_version, API_VERSION))
        raise PluginRefused(
            f"machinery {plugin.name!r} was made for contract {theirs}, this is {ours}"
        )
    return plugin


def _refuse(name: str, reason: str) -> None:
    log.error("plugin.refused", plugin=name, reason=reason)


def _title(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"{point.name}{package} ({point.value})"
