"""``conf/*.conf`` -> frozen dataclasses. All faults are reported at once, with file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.machinery import MachineConfig, MachineryPlugin


@dataclass(frozen=True, slots=True, kw_only=True)
class CuckooSection:
    """``[cuckoo]`` of cuckoo.conf: what the engine does."""

    machinery: tuple[str, ...] = ("qemu",)
    api_token: str = field(default="", repr=False)
    memory_dump: bool = False
    max_machines_count: int = 0
    """At most this many machines at once; 0 means all."""
    max_vmstartup_count: int = 5
    wait_for_machines: bool = False
    freespace: int = 1 << 30
    """Bytes (conf: MB, as in Cuckoo 2) below which no analysis starts."""
    tmppath: Path | None = None
    max_attempts: int = 3
    """How often the infrastructure may fail a task before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSection:
    """``[api]`` of cuckoo.conf: the HTTP server."""

    host: str = "127.0.0.1"
    port: int = 8090
    max_upload_size: int = 1 << 30
    legacy_statuses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultServerSection:
    """``[resultserver]`` of cuckoo.conf."""

    ip: str = "192.168.55.1"
    port: int = 2042
    upload_max_size: int = 128 << 20
    """Bytes of one file from a guest; the rest is cut off and marked."""
    max_connections: int = 128
    """Per analysis."""
    max_files: int = 10_000
    """Per analysis."""
    max_total_size: int = 2 << 30
    """Bytes per analysis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutsSection:
    """``[timeouts]`` of cuckoo.conf, all in seconds."""

    default: int = 120
    """How long a sample runs unless the task says otherwise."""
    critical: int = 60
    """Added to the sample's time; then the machine is stopped whatever the guest says."""
    vm_state: int = 60
    """For the hypervisor to reach a state."""
    agent: int = 60
    """From the start of the machine to the agent's first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSection:
    """``[database]`` of cuckoo.conf."""

    connection: str = ""
    """A SQLAlchemy URL; empty means ``sqlite:///<cwd>/cuckoo.db``."""
    timeout: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingSection:
    """``[processing]`` of cuckoo.conf: limits on what is made of one analysis."""

    analysis_size_limit: int = 128 << 20
    """Bytes of one input (a trace, a capture, a dropped file) that are looked into."""
    worker_timeout: int = 120
    """Seconds for one processor in its worker process."""
    worker_memory: int = 1 << 30
    """Bytes of address space for the worker process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSection:
    """``[routing]`` and ``[sinkhole]`` of routing.conf."""

    route: str = "none"
    """``none``: a guest reaches the result server and nothing else; ``sinkhole``: also a DNS and
    HTTP responder on the host that answers every name and request itself."""
    sinkhole_dns_port: int = 53
    sinkhole_http_port: int = 80

    @property
    def offered(self) -> frozenset[str]:
        """The routes that a task may ask for."""
        return frozenset({self.route})


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinerySettings:
    """One machinery's own file, ``conf/<name>.conf``, read with the help of its plugin."""

    name: str
    options: Mapping[str, str]
    machines: tuple[MachineConfig, ...]


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
    routing: RoutingSection = RoutingSection()
    machinery: Mapping[str, MachinerySettings] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """Lines for the log: unknown keys with the nearest known one."""

    @property
    def storage(self) -> Path:
        return self.cwd / "storage"


def load_settings(cwd: Path, plugins: Sequence[MachineryPlugin]) -> Settings:
    """Read ``cwd/conf``. Raises ConfigError with every fault found, each with what is allowed."""
    ...
