"""Speed and memory, as ratios: ``tox -e bench``.

    python -m tests.bench [start] [lease] [pool] [memory] [crowd] [throughput] [reading] [typical]

Whatever is compared is measured in turns in the same run, and the median round counts: the order
of two runs on a busy machine is worth more than their code. Exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import crowd, lease, memory, pool, reading, start, throughput, typical
from .figure import Figure

BENCHES = {
    "start": start.measure,
    "lease": lease.measure,
    "pool": pool.measure,
    "memory": memory.measure,
    "crowd": crowd.measure,
    "throughput": throughput.measure,
    "reading": reading.measure,
    "typical": typical.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Speed and memory")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    names = parser.parse_args().names or list(BENCHES)
    if strange := set(names) - set(BENCHES):
        parser.error(f"there is no {', '.join(strange)}; there is {', '.join(BENCHES)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # else a captured table is folded
    figures: list[Figure] = []
    for name in names:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            figures += BENCHES[name](Path(folder))
        console.print(f"{name}: {time.monotonic() - begin:.0f} s")
    console.print(table(figures))
    return 0 if all(figure.met for figure in figures) else 1


def table(figures: list[Figure]) -> Table:
    made = Table("figure", "measured", "beside", "ratio", "target", "", "note")
    for figure in figures:
        made.add_row(
            figure.name,
            figure.measured(),
            figure.compared(),
            f"{figure.ratio:.1%}",
            figure.target,
            Text("met", "green") if figure.met else Text("MISSED", "bold red"),
            figure.note,
        )
    return made


if __name__ == "__main__":
    raise SystemExit(main())
