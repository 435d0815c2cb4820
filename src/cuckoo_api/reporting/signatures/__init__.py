"""What the report's facts amount to: signatures with their evidence, and a score.

A signature of one's own is a class of :class:`Signature` and imports from here::

    from cuckoo_api.reporting.signatures import Facts, Signature, mark
"""

from __future__ import annotations

from cuckoo_api.reporting.signatures.base import (
    CallFacts,
    Facts,
    FileFacts,
    Mark,
    Observation,
    PlantedFile,
    SeenCommand,
    Signature,
    TouchedFile,
    mark,
    program,
)
from cuckoo_api.reporting.signatures.matching import Fired, score, scoring

__all__ = [
    "CallFacts",
    "Facts",
    "FileFacts",
    "Fired",
    "Mark",
    "Observation",
    "PlantedFile",
    "SeenCommand",
    "Signature",
    "TouchedFile",
    "mark",
    "program",
    "score",
    "scoring",
]
