"""The process in which everything that a guest wrote is parsed.

Run as ``python -I -m cuckoo_api.reporting.worker``. It reads one
:class:`~cuckoo_api.reporting.job.Request` from standard input and writes one
:class:`~cuckoo_api.reporting.job.Reply` a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import msgspec

from cuckoo_api.reporting.confine import confine
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.pipeline import run_pipeline
from cuckoo_api.reporting.sections import PROCESSORS

MAX_REPORT = 512 << 20


def main(processors: Mapping[str, str] = PROCESSORS) -> None:
    """Serve one request, confined, and end."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    confine(parent=request.parent, memory=request.memory, cpu=request.cpu, file_size=MAX_REPORT)
    # the answers get a descriptor of their own: a library may print what it likes
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for reply in run_pipeline(request, processors):
        answers.write(msgspec.json.encode(reply) + b"\n")


if __name__ == "__main__":
    main()
