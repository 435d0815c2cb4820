"""The settings as frozen dataclasses: one for each section, one field for each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.machinery import MachineConfig
from cuckoo_api.settings.fields import hidden, number
from cuckoo_api.settings.routing import (
    InetsimSection,
    Network,
    RooterSection,
    RoutingSection,
    TorSection,
    Vpn,
)
from cuckoo_api.settings.tokens import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class CuckooSection:
    """``[cuckoo]`` of cuckoo.conf: what the engine does."""

    machinery: tuple[str, ...] = ("qemu",)
    api_token: str = hidden()
    """What a client must show, if none of tokens.conf; it may do everything."""
    memory_dump: bool = False
    max_machines_count: int = number(0, 0)
    """At most this many machines at once; 0 means all."""
    max_vmstartup_count: int = number(5, 1)
    wait_for_machines: bool = False
    freespace: int = number(1 << 30, 0, scale=1 << 20)
    """Bytes (conf: MB, as in Cuckoo 2) below which no analysis starts."""
    tmppath: Path | None = None
    rooter: Path = Path("/run/cuckoo-rooter/rooter.sock")
    """The socket of the privileged helper, see ``cuckoo rooter``."""
    max_attempts: int = number(3, 1, 100)
    """How often the infrastructure may fail a task before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSection:
    """``[api]`` of cuckoo.conf: the HTTP server."""

    host: str = "127.0.0.1"
    port: int = number(8090, 0, 65535)
    max_upload_size: int = number(1 << 30, 1, 1 << 50)
    legacy_statuses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultServerSection:
    """``[resultserver]`` of cuckoo.conf."""

    ip: str = "192.168.55.1"
    port: int = number(2042, 1, 65535)
    """Not 0, for any free one: guests are told this number."""
    upload_max_size: int = number(128 << 20, 1, 1 << 50)
    """Bytes of one file from a guest; the rest is cut off and marked."""
    max_connections: int = number(128, 1, 65535)
    """Per analysis."""
    max_files: int = number(10_000, 1)
    """Per analysis."""
    max_total_size: int = number(2 << 30, 1, 1 << 50)
    """Bytes per analysis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutsSection:
    """``[timeouts]`` of cuckoo.conf, all in seconds."""

    default: int = number(120, 1)
    """How long a sample runs unless the task says otherwise."""
    critical: int = number(60, 1)
    """Added to the sample's time; then the machine is stopped whatever the guest says."""
    vm_state: int = number(60, 1)
    """For the hypervisor to reach a state."""
    agent: int = number(60, 1)
    """From the start of the machine to the agent's first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSection:
    """``[database]`` of cuckoo.conf."""

    connection: str = ""
    """A SQLAlchemy URL; empty means ``sqlite:///<cwd>/cuckoo.db``."""
    timeout: int = number(60, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingSection:
    """``[processing]`` of cuckoo.conf: limits on what is made of one analysis."""

    analysis_size_limit: int = number(128 << 20, 1, 1 << 50)
    """Bytes of one input (a trace, a capture, a dropped file) that are looked into."""
    worker_timeout: int = number(120, 1)
    """Seconds for one processor in its worker process."""
    worker_memory: int = number(1 << 30, 128 << 20, 1 << 50)
    """Bytes of address space for the worker process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportingSection:
    """``[reporting]`` of cuckoo.conf: the forms of a report besides report.json."""

    html: bool = True
    """Whether report.html is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSection:
    """``[retention]`` of cuckoo.conf: how long what was found out is kept."""

    days: int = number(0, 0, 36_500)
    """Days after which a task goes with all that is its own; 0: never."""
    report_only_days: int = number(0, 0, 36_500)
    """Days after which its files go and its report stays; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivesSection:
    """``[archives]`` of cuckoo.conf: limits on the archives of one submission."""

    passwords: tuple[str, ...] = field(default=(), repr=False)
    """Tried on encrypted archives after ``infected``."""
    max_files: int = number(200, 1, 500)
    """Each is held open until all of them have their tasks."""
    max_size: int = number(1 << 30, 1, 1 << 50)
    """Bytes that all of them may unpack to."""
    max_ratio: int = number(200, 1)
    """How many times its own size an archive may unpack to."""
    max_depth: int = number(3, 1, 10)
    """1: archives in archives are not opened."""
    timeout: int = number(120, 1)
    """Seconds for one archive with those in it."""
    memory: int = number(512 << 20, 128 << 20, 1 << 50)
    """Bytes of address space for the process that unpacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirusTotalSection:
    """``[virustotal]`` of cuckoo.conf: where files come from that are submitted by hash."""

    key: str = hidden()
    url: str = "https://www.virustotal.com"
    timeout: int = number(60, 1)
    """Seconds for one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhooksSection:
    """``[webhooks]`` of cuckoo.conf: who is told of the ends of tasks."""

    urls: tuple[str, ...] = ()
    """Told of every task; besides the callback that a task names itself."""
    secret: str = hidden()
    """Signs what is sent; empty: it is not signed."""
    allow_private: bool = False
    """Whether addresses that are not of the public internet may be called."""
    timeout: int = number(10, 1, 300)
    """Seconds for a receiver to answer."""
    attempts: int = number(8, 1, 100)
    """How often a receiver is tried before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinerySettings:
    """One machinery's own file, ``conf/<name>.conf``, read with the help of its plugin."""

    name: str
    options: Mapping[str, str]
    machines: tuple[MachineConfig, ...]
    max_vmstartup_count: int = 0
    """At most this many starts at once on this hypervisor; 0 means no limit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that was configured."""

    cwd: Path
    cuckoo: CuckooSection = CuckooSection()
    api: ApiSection = ApiSection()
    resultserver: ResultServerSection = ResultServerSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    database: DatabaseSection = DatabaseSection()
    processing: ProcessingSection = ProcessingSection()
    reporting: ReportingSection = ReportingSection()
    retention: RetentionSection = RetentionSection()
    archives: ArchivesSection = ArchivesSection()
    virustotal: VirusTotalSection = VirusTotalSection()
    webhooks: WebhooksSection = WebhooksSection()
    routing: RoutingSection = field(default_factory=RoutingSection)
    inetsim: InetsimSection = field(default_factory=InetsimSection)
    tor: TorSection = field(default_factory=TorSection)
    rooter: RooterSection = field(default_factory=RooterSection)
    vpns: Mapping[str, Vpn] = field(default_factory=dict)
    """By the name that tasks use; those of ``[vpn]`` in routing.conf."""
    machinery: Mapping[str, MachinerySettings] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    """Those of tokens.conf."""
    warnings: tuple[str, ...] = ()
    """Lines for the log: unknown keys with the nearest known one."""

    @property
    def asks_for_token(self) -> bool:
        """Whether there is authentication; without it the server listens on loopback only."""
        return bool(self.cuckoo.api_token or self.tokens)

    @property
    def network(self) -> Network:
        """All of routing.conf, and where the rooter is."""
        return Network(
            routing=self.routing,
            inetsim=self.inetsim,
            tor=self.tor,
            rooter=self.rooter,
            vpns=self.vpns,
            socket=self.cuckoo.rooter,
        )

    @property
    def storage(self) -> Path:
        return self.cwd / "storage"

    @property
    def database_url(self) -> str:
        """Where the database is, as a SQLAlchemy URL."""
        return self.database.connection or f"sqlite:///{self.cwd / 'cuckoo.db'}"
