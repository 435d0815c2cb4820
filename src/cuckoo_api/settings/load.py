"""Read a working directory's ``conf`` folder."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cuckoo_api.machinery import MachineConfig, MachineryPlugin, Option, Secret
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings.fields import MAX_INT
from cuckoo_api.settings.ini import Findings, IniFile
from cuckoo_api.settings.routing import (
    InetsimSection,
    Network,
    RooterSection,
    RoutingSection,
    TorSection,
    Vpn,
    VpnSection,
    check_network,
    complete,
    read_vpns,
    with_made,
)
from cuckoo_api.settings.tokens import Token, read_tokens
from cuckoo_api.settings.types import (
    ApiSection,
    ArchivesSection,
    CuckooSection,
    DatabaseSection,
    MachinerySettings,
    ProcessingSection,
    ReportingSection,
    ResultServerSection,
    RetentionSection,
    Settings,
    TimeoutsSection,
    VirusTotalSection,
    WebhooksSection,
)

T = TypeVar("T")

SECTIONS: dict[str, dict[str, type]] = {
    "cuckoo": {
        "cuckoo": CuckooSection,
        "api": ApiSection,
        "resultserver": ResultServerSection,
        "timeouts": TimeoutsSection,
        "database": DatabaseSection,
        "processing": ProcessingSection,
        "reporting": ReportingSection,
        "retention": RetentionSection,
        "archives": ArchivesSection,
        "virustotal": VirusTotalSection,
        "webhooks": WebhooksSection,
    },
    "routing": {
        "routing": RoutingSection,
        "inetsim": InetsimSection,
        "tor": TorSection,
        "vpn": VpnSection,
        "rooter": RooterSection,
    },
}
"""File and section -> dataclass."""

INHERITED = {
    ("cuckoo", "cuckoo"): (
        "version_check ignore_vulnerabilities web_secret delete_original delete_bin_copy "
        "terminate_processes reschedule process_results max_analysis_count daydream"
    ),
    ("cuckoo", "resultserver"): "force_port pool_size",
    ("cuckoo", "processing"): "resolve_dns sort_pcap",
    ("routing", "routing"): "auto_rt",
    ("routing", "inetsim"): "dnsport",
}
"""Keys of Cuckoo 2's files that mean nothing here (yet): an upgrader's file brings them."""

ROUTING = "conf/routing.conf"
INHERITED_SECTIONS = ("feedback", "remotecontrol")

MACHINE_KEYS = (
    "label",
    "platform",
    "ip",
    "snapshot",
    "interface",
    "tags",
    "resultserver_ip",
    "resultserver_port",
    "options",
    "osprofile",
    "rcparams",
)


def load_settings(
    cwd: Path,
    plugins: Sequence[MachineryPlugin],
    *,
    machinery: Sequence[str] | None = None,
    credentials: bool = True,
) -> Settings:
    """Read ``cwd/conf``. Raises ConfigError with every fault found, each with what is allowed.

    ``machinery`` is used in place of what ``[cuckoo] machinery`` names. Without ``credentials``
    those that systemd brings to its service alone are not read: only to look for other faults.
    """
    findings = Findings(credentials=credentials)
    tokens = read_tokens(cwd, findings)
    sections: dict[str, Any] = {}
    file = IniFile(cwd / "conf" / "cuckoo.conf", "conf/cuckoo.conf", findings)
    sections |= _sections(file, "cuckoo")
    _check(file, sections, tokens)
    file.finish(INHERITED_SECTIONS)
    network = _network(cwd / ROUTING, ROUTING, findings)
    if machinery is not None:
        sections["cuckoo"] = dataclasses.replace(sections["cuckoo"], machinery=tuple(machinery))
    by_name = {plugin.name: plugin for plugin in plugins}
    machineries: dict[str, MachinerySettings] = {}
    for name in sections["cuckoo"].machinery:
        if name in by_name:
            machineries[name] = _machinery(cwd, by_name[name], sections["resultserver"], findings)
        else:
            findings.faults.append(
                f"conf/cuckoo.conf [cuckoo] machinery: no plugin is installed for {name!r}; "
                f"installed: {', '.join(sorted(by_name)) or 'none'} "
                f"(pip install cuckoo-machinery-{name})"
            )
    _check_machines(machineries, findings)
    if findings.faults:
        raise ConfigError(findings.faults)
    return Settings(
        cwd=cwd.resolve(),
        **sections,
        routing=network.routing,
        inetsim=network.inetsim,
        tor=network.tor,
        rooter=network.rooter,
        vpns=network.vpns,
        machinery=machineries,
        tokens=tokens,
        warnings=tuple(findings.warnings),
    )


def load_network(cwd: Path, path: Path | None = None) -> Network:
    """Read what the rooter has to know. Raises ConfigError with every fault of it.

    With ``path`` that file alone is read, and nothing in the working directory.
    """
    findings = Findings()
    if path is not None:
        if not path.exists():
            findings.faults.append(f"{path} is not there; conf/routing.conf is its example")
        network, where = _network(path, str(path), findings), ""
    else:
        network = _network(cwd / ROUTING, ROUTING, findings)
        socket = IniFile(cwd / "conf" / "cuckoo.conf", "conf/cuckoo.conf", Findings())
        where = socket.text("cuckoo", "rooter")
    if findings.faults:
        raise ConfigError(findings.faults)
    return dataclasses.replace(network, socket=Path(where)) if where else network


def _network(path: Path, shown: str, findings: Findings) -> Network:
    file = IniFile(path, shown, findings)
    sections = _sections(file, "routing")
    wanted: VpnSection = sections.pop("vpn")
    for section in set(file.sections) - set(SECTIONS["routing"]) - set(wanted.vpns):
        if file.text(section, "interface"):  # a VPN that is not used
            file.know(section, (item.name for item in dataclasses.fields(Vpn)))
    found: dict[str, Vpn] = {}
    for name in wanted.vpns if wanted.enabled else ():
        if name in file.sections:
            found[name] = complete(_section(file, name, Vpn), name)
        else:
            file.fault("vpn", "vpns", f"{name!r} has no section [{name}]")
    for name in wanted.vpns:
        file.know(name, (item.name for item in dataclasses.fields(Vpn)))
    sections["rooter"] = with_made(sections["rooter"])
    network = Network(**sections, vpns=read_vpns(file, wanted, found))
    check_network(file, network)
    file.finish()
    return network


def _sections(file: IniFile, name: str) -> dict[str, Any]:
    """All of a file's sections that are always known, by name."""
    found: dict[str, Any] = {}
    for section, kind in SECTIONS[name].items():
        file.know(section, INHERITED.get((name, section), "").split())
        found[section] = _section(file, section, kind)
    return found


def _section(file: IniFile, section: str, kind: type[T]) -> T:
    """Fill a section's dataclass: the field's type says how its key is read."""
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]  # every section is a dataclass
        values[item.name] = _value(file, section, item, hints[item.name])
    return kind(**values)


def _value(file: IniFile, section: str, item: dataclasses.Field[Any], hint: object) -> Any:
    meta, default = item.metadata, _default(item)
    if hint is bool:
        return file.flag(section, item.name, default=default)
    if hint is int:
        return file.number(
            section, item.name, default,
            low=meta["low"], high=meta["high"], scale=meta["scale"],
        )  # fmt: skip
    if "secret" in meta:
        return file.secret(section, item.name, default)
    if "choices" in meta:
        return file.choice(section, item.name, default, meta["choices"])
    if hint == tuple[str, ...]:
        return file.words(section, item.name, default)
    text = file.text(section, item.name)
    if not text:
        return default
    return text if hint is str else Path(text).expanduser()


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default


def database_url(cwd: Path) -> str:
    """Where a working directory's database is, also when its settings are not fit for a start."""
    file = IniFile(cwd / "conf" / "cuckoo.conf", "conf/cuckoo.conf", Findings())
    return file.text("database", "connection") or f"sqlite:///{cwd / 'cuckoo.db'}"


def _check(file: IniFile, sections: dict[str, Any], tokens: tuple[Token, ...]) -> None:
    """What a single value cannot show."""
    api, cuckoo = sections["api"], sections["cuckoo"]
    if not cuckoo.api_token and not tokens and not is_loopback(api.host):
        file.fault(
            "api", "host",
            f"{api.host!r} is open to others and [cuckoo] api_token is empty; allowed without a "
            "token: 127.0.0.1, ::1, localhost",
        )  # fmt: skip
    if not _is_address(sections["resultserver"].ip):
        file.fault("resultserver", "ip", f"{sections['resultserver'].ip!r}; allowed: an IP address")
    url = sections["virustotal"].url
    if not url.startswith(("https://", "http://")):
        file.fault("virustotal", "url", f"{url!r}; allowed: an address with https:// or http://")
    for url in sections["webhooks"].urls:
        if not url.startswith(("https://", "http://")):
            file.fault("webhooks", "urls", f"{url!r}; allowed: addresses with https:// or http://")
    if cuckoo.tmppath is not None and not cuckoo.tmppath.is_dir():
        file.fault("cuckoo", "tmppath", f"'{cuckoo.tmppath}'; allowed: a folder that exists")


def _machinery(
    cwd: Path, plugin: MachineryPlugin, results: ResultServerSection, findings: Findings
) -> MachinerySettings:
    file = IniFile(cwd / "conf" / f"{plugin.name}.conf", f"conf/{plugin.name}.conf", findings)
    interface = file.text(plugin.name, "interface")
    names = file.words(plugin.name, "machines")
    starts = file.number(plugin.name, "max_vmstartup_count", 0, low=0, high=MAX_INT)
    options = _options(file, plugin.name, plugin.options) | {"interface": interface}
    machines: list[MachineConfig] = []
    for name in dict.fromkeys(names):
        file.know(name, MACHINE_KEYS)
        if name not in file.sections:
            file.fault(plugin.name, "machines", f"{name!r} has no section [{name}]")
            continue
        ip = file.text(name, "ip")
        if not _is_address(ip):
            file.fault(name, "ip", f"{ip!r}; allowed: the guest's IP address")
        machines.append(
            MachineConfig(
                label=file.text(name, "label") or name,
                name=name,
                platform=file.text(name, "platform") or "linux",
                ip=_canonical(ip),
                interface=file.text(name, "interface") or interface,
                snapshot=file.text(name, "snapshot"),
                resultserver_ip=file.text(name, "resultserver_ip") or results.ip,
                resultserver_port=file.number(
                    name, "resultserver_port", results.port, low=1, high=65535
                ),
                tags=file.words(name, "tags"),
                options=_options(file, name, plugin.machine_options)
                | {"options": file.text(name, "options")},
            )
        )
    file.finish()
    return MachinerySettings(
        name=plugin.name,
        options=options,
        machines=tuple(machines),
        max_vmstartup_count=starts,
    )


def _options(file: IniFile, section: str, declared: Sequence[Option]) -> dict[str, str]:
    values: dict[str, str] = {}
    for option in declared:
        if option.choices:
            value = file.choice(section, option.name, option.default, option.choices)
        elif option.secret:
            value = file.secret(section, option.name) or option.default
        else:
            value = file.text(section, option.name) or option.default
        values[option.name] = Secret(value) if option.secret else value
    return values


def _check_machines(machinery: dict[str, MachinerySettings], findings: Findings) -> None:
    """No name, and no address, twice: results are told apart by address."""
    seen: dict[tuple[str, str], str] = {}
    for backend in machinery.values():
        for machine in backend.machines:
            for kind, value in (
                ("name", machine.name),
                ("ip", machine.ip),
                ("label", f"{backend.name}/{machine.label}"),
            ):
                place = f"conf/{backend.name}.conf [{machine.name}]"
                other = seen.setdefault((kind, value), place)
                if other is not place:
                    findings.faults.append(
                        f"{place} {kind}: {value!r} is {other}'s already; allowed: one of its own"
                    )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach a listener there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _canonical(address: str) -> str:
    """The one form of an address; what is none stays."""
    return str(ipaddress.ip_address(address)) if _is_address(address) else address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
