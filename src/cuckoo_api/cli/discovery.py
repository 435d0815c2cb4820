"""What ``cuckoo machines discover`` prints: a section for each machine, ready to be pasted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuckoo_api.cli.terminal import plain
from cuckoo_api.machinery import MachineFacts

_LONGEST = 64
"""The longest name that is made for a section."""


@dataclass(frozen=True, slots=True)
class Found:
    """A machine that a hypervisor has. Its names may be anybody's: they are hostile."""

    label: str
    facts: MachineFacts | None
    trouble: str = ""
    """Why there are no facts."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"label": self.label, **dataclasses.asdict(self.facts or MachineFacts())}


def conf(backend: str, found: Sequence[Found], configured: Mapping[str, str]) -> str:
    """Text for ``conf/<backend>.conf``; ``configured`` are the names of labels that are there."""
    new = [one for one in found if one.label not in configured]
    names = _names(backend, [one.label for one in new], configured.values())
    lines = [f"# {backend} has {len(found)} machine(s); {len(new)} not configured yet."]
    lines += [f"# [{name}] is there already: {plain(label)}" for label, name in configured.items()]
    if new:
        listed = ", ".join([*configured.values(), *names])
        lines += [
            f"# To use them, append their sections to conf/{backend}.conf, and in [{backend}] set:",
            f"# machines = {listed}",
        ]
    for name, one in zip(names, new, strict=True):
        lines += ["", *_section(name, one)]
    return "\n".join(lines) + "\n"


def _section(name: str, found: Found) -> Iterator[str]:
    facts = found.facts or MachineFacts()
    for trouble in (found.trouble, *facts.faults):
        if trouble:
            yield f"# Trouble: {plain(trouble)}"
    if found.label != plain(found.label).strip():
        yield "# Its label cannot be written into a file: rename the machine."
    yield f"[{name}]"
    yield f"label = {plain(found.label)}"
    if not facts.platform:
        yield "# The hypervisor does not tell: windows, linux or darwin."
    yield f"platform = {plain(facts.platform) or 'linux'}"
    if not facts.ip:
        yield "# The guest's address, which the hypervisor does not know."
    yield f"ip = {plain(facts.ip)}"
    if len(facts.snapshots) > 1:
        yield f"# One of: {', '.join(map(plain, facts.snapshots))}"
    elif not facts.snapshots:
        yield (
            "# It has none: take one while its agent runs."
            if found.facts
            else ("# Empty: the current one.")
        )
    yield f"snapshot = {plain(facts.current_snapshot or ''.join(facts.snapshots[-1:]))}"


def _names(backend: str, labels: Sequence[str], taken: Collection[str]) -> list[str]:
    """A name for each section, none twice: letters, digits, dots, dashes and underscores."""
    used = {backend, *taken}
    names: list[str] = []
    for label in labels:
        last = label.rstrip("/").rpartition("/")[2]
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-")[:_LONGEST] or "machine"
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}-{number}"
        used.add(name)
        names.append(name)
    return names
