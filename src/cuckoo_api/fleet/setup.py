"""From settings to what backends and the store are told."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cuckoo_api.machinery import BackendConfig, MachineConfig, MachineryPlugin, Service, Taps
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.model.machine import Machine
from cuckoo_api.settings import MachinerySettings, Settings

TapsOf = Callable[[Settings], Taps | None]
"""Where taps can be had; see :class:`cuckoo_api.machinery.Taps`."""


def no_taps(_: Settings) -> Taps | None:
    """Nobody makes any."""
    return None


def backend_configs(
    settings: Settings, plugins: Mapping[str, MachineryPlugin], taps_of: TapsOf = no_taps
) -> list[BackendConfig]:
    """One for each active machinery, with its private folder made. ConfigError names all faults."""
    faults = list(_faults(settings, plugins))
    if faults:
        raise ConfigError(faults)
    return [
        BackendConfig(
            name=name,
            machines=tuple(_complete(m, settings) for m in settings.machinery[name].machines),
            state_dir=_private_folder(settings.cwd / "machinery" / name),
            options=settings.machinery[name].options,
            services=_services(settings),
            taps=taps_of(settings),
        )
        for name in settings.cuckoo.machinery
    ]


def machine_row(config: MachineConfig, manager: str) -> Machine:
    """The machine as the store keeps it; the id is the store's to give."""
    options = config.options.get("options", "")
    return Machine(
        id=0,
        name=config.name,
        label=config.label,
        manager=manager,
        ip=config.ip,
        platform=config.platform,
        tags=list(config.tags),
        options=[options] if options else [],
        interface=config.interface or None,
        snapshot=config.snapshot or None,
        resultserver_ip=config.resultserver_ip,
        resultserver_port=config.resultserver_port,
    )


def _faults(settings: Settings, plugins: Mapping[str, MachineryPlugin]) -> Iterator[str]:
    sections: list[MachinerySettings] = []
    for name in settings.cuckoo.machinery:
        if name not in plugins:
            there = ", ".join(sorted(plugins)) or "none"
            yield f"[cuckoo] machinery: no plugin for {name!r} could be loaded; there are: {there}"
        elif name not in settings.machinery:
            yield f"[cuckoo] machinery: conf/{name}.conf was not read"
        else:
            sections.append(settings.machinery[name])
    names = Counter(machine.name for section in sections for machine in section.machines)
    for name in (name for name, count in names.items() if count > 1):
        yield f"machine {name!r}: this name is given to more than one machine"
    for section in sections:
        labels = Counter(machine.label for machine in section.machines)
        for label in (label for label, count in labels.items() if count > 1):
            yield f"conf/{section.name}.conf: more than one machine has the label {label!r}"


def _complete(machine: MachineConfig, settings: Settings) -> MachineConfig:
    if machine.resultserver_ip:
        return machine
    return dataclasses.replace(machine, resultserver_ip=settings.resultserver.ip)


def _services(settings: Settings) -> tuple[Service, ...]:
    results = Service("results", "tcp", settings.resultserver.port)
    if settings.routing.route != "sinkhole":
        return (results,)
    dns, http = settings.routing.sinkhole_dns_port, settings.routing.sinkhole_http_port
    return (
        results,
        Service("dns", "tcp", dns),
        Service("dns", "udp", dns),
        Service("http", "tcp", http),
    )


def _private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
