"""The guest: its agent's protocol, the analyzer it is given, and the image of the demo guest."""

from __future__ import annotations

from cuckoo_api.guest.analyzer import analyzer_zip
from cuckoo_api.guest.client import AgentInfo, GuestClient, GuestJob, Outcome
from cuckoo_api.guest.errors import (
    AgentRefused,
    AgentUnreachable,
    BadAnswer,
    GuestError,
    NoAnalyzer,
)

__all__ = [
    "AgentInfo",
    "AgentRefused",
    "AgentUnreachable",
    "BadAnswer",
    "GuestClient",
    "GuestError",
    "GuestJob",
    "NoAnalyzer",
    "Outcome",
    "analyzer_zip",
]
