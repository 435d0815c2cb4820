"""How often one client may ask."""

from __future__ import annotations


class Bucket:
    """Holds requests: as many as may come at once, filled again at so many a minute."""

    __slots__ = ("_left", "_per_second", "_size", "_then")

    def __init__(self, rate: int, burst: int = 0) -> None:
        """``rate`` a minute, at least 1; without ``burst`` a whole minute's may come at once."""
        self._per_second = rate / 60
        self._size = self._left = float(burst or rate)
        self._then = 0.0

    def take(self, now: float) -> float:
        """Take one at this second; 0, or how many seconds later there is one."""
        self._left = min(self._size, self._left + (now - self._then) * self._per_second)
        self._then = now
        if self._left < 1:
            return (1 - self._left) / self._per_second
        self._left -= 1
        return 0.0
