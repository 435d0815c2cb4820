"""INI files that remember where each value stood, and collect what is wrong with them."""

from __future__ import annotations

import configparser
import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.settings.secret import BadSecret, resolve

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})

_SECTION = re.compile(r"\[(?P<name>[^]]+)\]")
_KEY = re.compile(r"(?P<name>[^=:\s][^=:]*?)\s*[=:]")


@dataclass(slots=True)
class Findings:
    """What was found wrong: faults stop the start, warnings do not."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    credentials: bool = True
    """Whether one that cannot be read is a fault."""


class IniFile:
    """One file. A key that was read is known; the others are reported by :meth:`finish`."""

    def __init__(self, path: Path, shown: str, findings: Findings) -> None:
        """``shown`` is how messages name the file."""
        self._shown = shown
        self._findings = findings
        self._lines: dict[tuple[str, str], int] = {}
        self._known: dict[str, set[str]] = {}
        parser = self._parser = _parser()
        try:
            text = path.read_text(encoding="utf-8")
            parser.read_string(text, source=shown)
        except FileNotFoundError:
            pass
        except UnicodeDecodeError as exc:
            findings.faults.append(f"{shown}: byte {exc.start} is not UTF-8 text")
        except (OSError, configparser.Error) as exc:
            findings.faults.append(f"{shown}: {_reason(exc)}")
            self._parser = _parser()  # what a broken file left in the other is not to be used
        else:
            self._remember_lines(text)

    def _remember_lines(self, text: str) -> None:
        section = ""
        for number, line in enumerate(text.splitlines(), 1):
            if line[:1] in ("#", ";", " ", "\t", ""):
                continue
            if heading := _SECTION.match(line):
                section = heading["name"]
                self._lines.setdefault((section, ""), number)
            elif key := _KEY.match(line):
                self._lines.setdefault((section, key["name"].lower()), number)

    @property
    def sections(self) -> list[str]:
        """The names of all sections, in the file's order."""
        return self._parser.sections()

    def where(self, section: str, key: str = "") -> str:
        """``conf/cuckoo.conf:12 [section] key`` for messages."""
        line = self._lines.get((section, key))
        place = f"{self._shown}:{line}" if line else self._shown
        return f"{place} [{section}]{' ' + key if key else ''}"

    def know(self, section: str, keys: Iterable[str]) -> None:
        """These keys are expected; they need no reading."""
        self._known.setdefault(section, set()).update(keys)

    def fault(self, section: str, key: str, text: str) -> None:
        """Report something that stops the start."""
        self._findings.faults.append(f"{self.where(section, key)}: {text}")

    def warn(self, section: str, key: str, text: str) -> None:
        """Report something that does not."""
        self._findings.warnings.append(f"{self.where(section, key)}: {text}")

    # -- values -------------------------------------------------------------------------------

    def text(self, section: str, key: str, default: str = "") -> str:
        """The value as it stands, without blanks around it; ``default`` when it is not there."""
        self.know(section, [key])
        value = self._parser.get(section, key, fallback=None)
        return default if value is None else value.strip()

    def secret(self, section: str, key: str, default: str = "") -> str:
        """A text that may stand in another file; what is wrong with that one is a fault."""
        try:
            text = self.text(section, key, default)
            value, warning = resolve(text, credentials=self._findings.credentials)
        except BadSecret as exc:
            self.fault(section, key, str(exc))
            return default
        if warning:
            self.warn(section, key, warning)
        return value

    def number(
        self, section: str, key: str, default: int, *, low: int, high: int, scale: int = 1
    ) -> int:
        """A whole number, times ``scale``."""
        text = self.text(section, key)
        if not text:
            return default
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            self.fault(section, key, f"{text!r}; allowed: a whole number from {low} to {high}")
            return default
        return int(text) * scale

    def flag(self, section: str, key: str, *, default: bool) -> bool:
        """Yes or no, in Cuckoo's words."""
        text = self.text(section, key).lower()
        if not text:
            return default
        if text not in TRUE | FALSE:
            self.fault(section, key, f"{text!r}; allowed: yes, no, on, off, true, false, 1, 0")
            return default
        return text in TRUE

    def words(self, section: str, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A comma-separated list; ``default`` when the key is not there at all."""
        if not self._parser.has_option(section, key):
            self.know(section, [key])
            return default
        return tuple(w.strip() for w in self.text(section, key).split(",") if w.strip())

    def choice(self, section: str, key: str, default: str, allowed: Collection[str]) -> str:
        """One of a few words, in any case."""
        text = self.text(section, key).lower()
        if not text:
            return default
        if text not in allowed:
            self.fault(section, key, f"{text!r}; allowed: {', '.join(allowed)}")
            return default
        return text

    # -- the rest -----------------------------------------------------------------------------

    def finish(self, ignored_sections: Collection[str] = ()) -> None:
        """Warn of sections and keys that nobody asked for, with the nearest known name."""
        if "*" in ignored_sections:
            ignored_sections = set(self.sections) - set(self._known)
        for section in self.sections:
            if section in ignored_sections:
                continue
            if section not in self._known:
                near = _nearest(section, self._known)
                self.warn(section, "", f"unknown section, ignored{near}")
                continue
            for key in self._parser[section]:
                if key not in self._known[section]:
                    near = _nearest(key, self._known[section])
                    self.warn(section, key, f"unknown key, ignored{near}")


def _parser() -> configparser.ConfigParser:
    return configparser.ConfigParser(interpolation=None, strict=True, default_section="")


def _reason(exc: Exception) -> str:
    """What is wrong with a file, without its lines: one may hold a token."""
    match exc:
        case configparser.MissingSectionHeaderError():
            return f"line {exc.lineno}: there are no section headers before it"
        case configparser.ParsingError():
            numbers = ", ".join(str(number) for number, _ in exc.errors)
            return f"line {numbers}: expected 'key = value'"
        case _:
            return " ".join(str(exc).split())


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
