"""The fields of a submission -> a checked :class:`~cuckoo_api.model.task.NewTask`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cuckoo_api.model.errors import BadInput
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import DATE_FORMAT, NewTask

CLOCK_FORMAT = "%m-%d-%Y %H:%M:%S"
MAX_TEXT = 64 << 10
MAX_NUMBER = (1 << 31) - 1

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})
_PACKAGE = re.compile(r"[A-Za-z0-9_.-]{0,64}")


def parse_bool(name: str, text: str) -> bool:
    """``1 true yes on`` / ``0 false no off`` and empty, in any case."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise BadInput(f"{name}: expected one of 1, true, yes, on, 0, false, no, off; got {text!r:.80}")


def parse_int(name: str, text: str, *, low: int, high: int = MAX_NUMBER) -> int:
    """A decimal number between ``low`` and ``high``."""
    word = text.strip()
    if not re.fullmatch(r"-?[0-9]{1,20}", word) or not low <= int(word) <= high:
        raise BadInput(f"{name}: expected a whole number from {low} to {high}; got {text!r:.80}")
    return int(word)


def parse_options(text: str) -> dict[str, str]:
    """``k=v,k=v``; blanks around keys and values go, a later key wins."""
    options: dict[str, str] = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"options: expected key=value,key=value; got {pair!r:.80}")
        options[key.strip()] = value.strip()
    return options


def parse_clock(text: str) -> str | None:
    """Month first, as Cuckoo documents it; empty means now."""
    if not text.strip():
        return None
    try:
        moment = datetime.strptime(text.strip(), CLOCK_FORMAT)  # noqa: DTZ007 - the guest's own clock has no zone
    except ValueError:
        raise BadInput(
            f"clock: expected month-day-year hour:minute:second, like 12-31-2026 23:59:59; "
            f"got {text!r:.80}"
        ) from None
    return moment.strftime(DATE_FORMAT)


def parse_package(text: str) -> str:
    """The name of an analysis package of the guest's analyzer."""
    if not _PACKAGE.fullmatch(text.strip()):
        raise BadInput(
            f"package: expected at most 64 letters, digits, '_', '-' or '.'; got {text!r:.80}"
        )
    return text.strip()


def parse_tags(text: str) -> list[str]:
    """Comma-separated words, each once, in the order given."""
    return list(dict.fromkeys(tag.strip() for tag in text.split(",") if tag.strip()))


_PARSERS: dict[str, Callable[[str], Any]] = {
    "package": parse_package,
    "timeout": lambda text: parse_int("timeout", text or "0", low=0),
    "priority": lambda text: parse_int("priority", text or "1", low=1),
    "options": parse_options,
    "machine": str.strip,
    "platform": str.strip,
    "tags": parse_tags,
    "custom": str,
    "owner": str,
    "clock": parse_clock,
    "memory": lambda text: parse_bool("memory", text),
    "enforce_timeout": lambda text: parse_bool("enforce_timeout", text),
    "callback": str.strip,
}


def parse_fields(fields: Mapping[str, str]) -> dict[str, Any]:
    """Parse every field of a submission that is a task's; unknown fields are ignored.

    Raises BadInput that names the field and says what is expected.
    """
    parsed: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        text = fields.get(name)
        if text is None:
            continue
        if len(text) > MAX_TEXT or "\0" in text:
            raise BadInput(f"{name}: expected at most {MAX_TEXT} characters and no NUL")
        parsed[name] = parse(text)
    return parsed


def check_route(task: NewTask, routes: Collection[str]) -> None:
    """Refuse a route that this server does not offer."""
    route = task.options.get("route")
    if route is not None and route not in routes:
        raise BadInput(f"options: route={route!r:.80} is not offered; there is {_listed(routes)}")


def check_machines(task: NewTask, machines: Sequence[Machine]) -> None:
    """Refuse a task that no configured machine can ever serve; say what there is.

    Where no machine is configured at all, everything may wait for one.
    """
    if not machines:
        return
    if task.machine and not any(task.machine in (m.name, m.label) for m in machines):
        raise BadInput(
            f"machine: there is no {task.machine!r:.80}; there is "
            f"{_listed(m.name for m in machines)}"
        )
    if not any(fits(task, machine) for machine in machines):
        there = "; ".join(f"{m.name} ({', '.join([m.platform, *m.tags])})" for m in machines)
        wanted = ", ".join(filter(None, [task.machine, task.platform, *task.tags]))
        raise BadInput(
            f"machine, platform, tags: no machine serves {wanted!r:.200}; there is {there}"
        )


def fits(task: NewTask, machine: Machine) -> bool:
    """Whether the machine may run the task: the rule that the store's claim follows too."""
    return (
        (not task.machine or task.machine in (machine.name, machine.label))
        and (not task.platform or task.platform == machine.platform)
        and set(task.tags) <= set(machine.tags)
    )


def base_name(name: str) -> str:
    """The last part of the name that a client gave, whatever its system's separator is.

    Control characters go; an empty name becomes ``sample``.
    """
    last = re.split(r"[/\\]", name.replace("\0", ""))[-1]
    clean = "".join(c if c.isprintable() else "_" for c in last).strip()
    return clean[:255] if clean not in ("", ".", "..") else "sample"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
