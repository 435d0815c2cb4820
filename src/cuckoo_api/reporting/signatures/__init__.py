"""What the report's facts amount to: signatures with their evidence, and a score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature
from cuckoo_api.reporting.signatures.download import NetworkDownload
from cuckoo_api.reporting.signatures.files import (
    ExecutesDropped,
    HiddenFile,
    MassFileChange,
    ReadsShadow,
    SelfDelete,
)
from cuckoo_api.reporting.signatures.persistence import (
    PersistenceCron,
    PersistenceInit,
    PersistencePreload,
    PersistenceShell,
    PersistenceSshKey,
    PersistenceSystemd,
)
from cuckoo_api.reporting.signatures.system import DisablesHistory, KernelModuleLoad

__all__ = ["SIGNATURES", "Facts", "Signature", "match_signatures", "score"]

MAX_MARKS = 50

SIGNATURES: tuple[type[Signature], ...] = (
    PersistenceCron,
    PersistenceShell,
    PersistenceSystemd,
    PersistenceInit,
    PersistencePreload,
    PersistenceSshKey,
    SelfDelete,
    NetworkDownload,
    MassFileChange,
    ExecutesDropped,
    ReadsShadow,
    KernelModuleLoad,
    HiddenFile,
    DisablesHistory,
)

_WEIGHTS = {1: 0.5, 2: 1.5, 3: 3.0}


def match_signatures(
    facts: Facts, notes: Notes, signatures: Sequence[type[Signature]] = SIGNATURES
) -> list[dict[str, Any]]:
    """The report's ``signatures``: those that found evidence, the gravest first."""
    found: list[dict[str, Any]] = []
    for kind in signatures:
        try:
            marks = _distinct(kind().marks(facts))
        except Exception as exc:  # noqa: BLE001 - one signature must not cost the others
            notes.add(f"signature {kind.name}: {type(exc).__name__}: {exc}")
            continue
        if marks:
            found.append(
                {
                    "name": kind.name,
                    "description": kind.description,
                    "severity": kind.severity,
                    "ttp": list(kind.ttp),
                    "families": list(kind.families),
                    "references": list(kind.references),
                    "markcount": len(marks),
                    "marks": marks[:MAX_MARKS],
                }
            )
    return sorted(found, key=lambda item: -item["severity"])


def score(severities: Iterable[int]) -> float:
    """0 to 10, one decimal: the sum over the signatures that fired, cut at 10.

    Severity 1 counts 0.5, severity 2 counts 1.5, severity 3 counts 3. So one grave signature
    alone is a 3, two suspicious ones are as much, and four grave ones reach the top.
    """
    return round(
        min(10.0, sum((_WEIGHTS.get(severity, 0.0) for severity in severities), start=0.0)), 1
    )


def _distinct(marks: Iterable[Mark]) -> list[Mark]:
    """Each piece of evidence once for a process: a file that was created was also written."""
    kept = {(item["category"], item["ioc"], item["pid"]): item for item in marks}
    return list(kept.values())
