"""The process in which everything that a guest wrote is parsed.

Run as ``python -I -m cuckoo_api.reporting.worker``. It reads one
:class:`~cuckoo_api.reporting.job.Request` a line from standard input, all of one analysis, and
writes one :class:`~cuckoo_api.reporting.job.Reply` a line for each of their steps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import magic  # noqa: F401 - it starts programs to find its library, which a worker may not later
import msgspec

from cuckoo_api.confinement import confine
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.pipeline import run_pipeline
from cuckoo_api.reporting.sections import PROCESSORS

MAX_REPORT = 512 << 20


def main(processors: Mapping[str, str] = PROCESSORS) -> None:
    """Serve the requests of one analysis, confined to what the first one names."""
    requests = (msgspec.json.decode(line, type=Request) for line in sys.stdin.buffer)
    request = next(requests)
    confine(
        parent=request.parent,
        memory=request.memory,
        cpu=request.cpu,
        file_size=MAX_REPORT,
        readable=[
            request.folder,
            f"{request.folder}/binary",  # the server's own link to the sample
            *_with_links(Path(request.cwd, "conf", "yara")),
            *_with_links(Path(request.cwd, "signatures")),
        ],
        # a link in their place would lead out of the analysis
        writable=[
            str(place)
            for name in ("reports", "network")
            if not (place := Path(request.folder, name)).is_symlink()
        ],
    )
    # the answers get a descriptor of their own: a library may print what it likes
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for each in chain((request,), requests):
        for reply in run_pipeline(each, processors):
            answers.write(msgspec.json.encode(reply) + b"\n")


def _with_links(folder: Path) -> Iterator[str]:
    """The folder, and where the user's own links in it lead."""
    yield str(folder)
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (inside := Path(path, name)).is_symlink():
                yield str(inside)


if __name__ == "__main__":
    main()
