"""What is measured of analyses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

Phase = Literal["restore", "agent", "run", "report"]
PHASES: tuple[Phase, ...] = ("restore", "agent", "run", "report")

SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Meter:
    """Counts into a registry; without one, for nobody."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        phases = Histogram(
            "cuckoo_analysis_phase_seconds",
            "Time that a phase of an analysis took, of those that came to their end",
            ["phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self._phases = {phase: phases.labels(phase) for phase in PHASES}
        self.result_bytes = Counter(
            "cuckoo_result_bytes",
            "Bytes of results that guests delivered and the result server kept",
            registry=registry,
        )

    def laps(self) -> Callable[[Phase], None]:
        """A stopwatch that runs: each call ends a phase, and begins the next one."""
        begin = time.monotonic()

        def lap(phase: Phase) -> None:
            nonlocal begin
            now = time.monotonic()
            self._phases[phase].observe(now - begin)
            begin = now

        return lap
