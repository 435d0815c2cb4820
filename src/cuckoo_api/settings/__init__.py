"""``conf/*.conf`` -> frozen dataclasses. All faults are reported at once, with file and line."""

from cuckoo_api.settings.init import default_conf, find_cwd, init_cwd
from cuckoo_api.settings.load import database_url, load_network, load_settings
from cuckoo_api.settings.routing import Network, RooterSection, RoutingSection, Vpn
from cuckoo_api.settings.tokens import Rights, Token
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

__all__ = [
    "ApiSection",
    "ArchivesSection",
    "CuckooSection",
    "DatabaseSection",
    "MachinerySettings",
    "Network",
    "ProcessingSection",
    "ReportingSection",
    "ResultServerSection",
    "RetentionSection",
    "Rights",
    "RooterSection",
    "RoutingSection",
    "Settings",
    "TimeoutsSection",
    "Token",
    "VirusTotalSection",
    "Vpn",
    "WebhooksSection",
    "database_url",
    "default_conf",
    "find_cwd",
    "init_cwd",
    "load_network",
    "load_settings",
]
