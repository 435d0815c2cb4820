"""``analysis.conf``: what the host wants done, in the form Cuckoo 2 writes it."""

import calendar
from typing import Dict, Optional



class AnalysisConf:
    """The section ``[analysis]``. Unknown keys are ignored, absent ones have defaults."""

    def __init__(self, values: Dict[str, str]) -> None:
        self.id = values.get("id", "0")
        self.category = values.get("category", "file")
        self.target = values.get("target", "")
        self.package = values.get("package", "")
        self.file_name = values.get("file_name", "")
        self.file_type = values.get("file_type", "")
        self.ip = values.get("ip", "192.168.55.1")
        self.port = int(values.get("port", "2042"))
        self.timeout = float(values.get("timeout") or 120)
        self.enforce_timeout = _boolean(values.get("enforce_timeout", ""))
        self.clock = _seconds(values.get("clock", ""))
        self.options = _options(values.get("options", ""))

    def wants(self, option: str) -> bool:
        """Whether an option is switched on."""
        return _boolean(self.options.get(option, ""))

    @classmethod
    def read(cls, path: str) -> "AnalysisConf":
        """Read the file. Raises OSError or ValueError."""
        values: Dict[str, str] = {}
        section = ""
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                key, equals, value = line.partition("=")
                if line.startswith("["):
                    section = line.strip()
                elif equals and section == "[analysis]":
                    values[key.strip().lower()] = value.strip()
        return cls(values)


def _boolean(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


def _seconds(text: str) -> Optional[float]:
    """Seconds since 1970 for a UTC date, ``20240102T03:04:05``, or None if it is none."""
    digits = "".join(filter(str.isdigit, text))
    if len(digits) != 14:
        return None
    parts = [int(digits[:4])] + [int(digits[at:at + 2]) for at in range(4, 14, 2)]
    # not strptime: the first call of that compiles for a tenth of a second on an emulated processor
    return float(calendar.timegm((*parts, 0, 0, 0))) if 1 <= parts[1] <= 12 else None


def _options(text: str) -> Dict[str, str]:
    """``k=v,k=v``; a piece without ``=`` continues the value before it."""
    found: Dict[str, str] = {}
    last = ""
    for piece in text.split(",") if text else []:
        key, equals, value = piece.partition("=")
        if equals:
            last = key.strip()
            found[last] = value
        elif last:
            found[last] += "," + piece
    return found
