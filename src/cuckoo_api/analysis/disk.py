"""Room for results: analyses pause before the disk is full, and go on by themselves.

A file system makes no event when it gets room. It is measured when a machine could be leased, and
whenever somebody asks how the server is; nobody waits for it in a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from cuckoo_api.analysis.system import free_bytes
from cuckoo_api.model.task import now_text

log = structlog.get_logger()


class DiskRoom:
    """Whether there is room. Once there is too little, a tenth more is asked for to go on.

    Else each analysis that ends, and each report that is made, would begin or end the pause.
    """

    def __init__(
        self, folder: Path, wanted: int, *, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """``wanted`` bytes for whoever writes to ``folder``; ``on_change`` at either end."""
        self.wanted = wanted
        self.low = False
        """As it was seen last."""
        self.free = 0
        """Bytes, as they were seen last."""
        self._folder = folder
        self._on_change = on_change

    def look(self) -> bool:
        """Measure; whether an analysis may start now. OSError where the folder is gone."""
        self.free = free_bytes(self._folder)
        if (self.free < self._limit) != self.low:
            self.low = not self.low
            if self.low:
                hint = "no analysis starts until there is room under storage/"
                log.warning("disk.low", free=self.free, wanted=self.wanted, hint=hint)
            else:
                log.info("disk.has_room", free=self.free, wanted=self.wanted)
            self._on_change()
        return not self.low

    @property
    def problem(self) -> str:
        """Why no analysis starts; empty when they do. Measures."""
        if self.look():
            return ""
        text = (
            f"disk: {self.free >> 20} MiB free under {self._folder}, "
            f"[cuckoo] freespace asks for {self.wanted >> 20}"
        )
        more = "" if self.free < self.wanted else f", and after a pause for {self._limit >> 20}"
        return text + more

    def event(self) -> dict[str, object]:
        """What is told to those who follow the events."""
        return {"low": self.low, "free": self.free, "wanted": self.wanted, "time": now_text()}

    @property
    def _limit(self) -> int:
        return self.wanted + self.wanted // 10 if self.low else self.wanted
