"""The process that makes a report: what it may do, and what is left when it dies."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cuckoo_api.model.task import Task
from cuckoo_api.reporting import service
from cuckoo_api.reporting.child import Worker
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.service import WORKER, ProcessingFailed, make_report
from cuckoo_api.settings import ProcessingSection

pytestmark = pytest.mark.slow

Put = Callable[[bytes], None]
TASK = Task(id=7, category="file", target="/x/sample.sh", added_on="2026-01-01 00:00:00")

CRASHES = """
import os, signal, sys, types
from cuckoo_api.reporting.sections import PROCESSORS
from cuckoo_api.reporting.worker import main
module = sys.modules["crashes"] = types.ModuleType("crashes")
module.run = lambda *_: {0}
main({{**PROCESSORS, "static": "crashes"}})
"""


async def report(folder: Path, cwd: Path, worker: Sequence[str] = WORKER) -> dict[str, Any]:
    await make_report(folder, TASK, None, ProcessingSection(), cwd, worker=worker)
    made: dict[str, Any] = json.loads((folder / "reports" / "report.json").read_bytes())
    return made


async def test_rules_run_within_the_worker_s_limits(
    folder: Path, sample: Put, tmp_path: Path
) -> None:
    rules = tmp_path / "conf" / "yara" / "a.yar"
    rules.parent.mkdir(parents=True)
    rules.write_text(
        'rule broken { condition: no }\nrule good { strings: $a = "echo" condition: $a }'
    )
    sample(b"#!/bin/sh\necho hello\n")

    made = await report(folder, tmp_path)

    assert [match["name"] for match in made["target"]["file"]["yara"]] == ["good"]
    [said] = [line for line in made["debug"]["errors"] if "yara" in line]
    assert said.startswith("conf/yara/a.yar:1: the rule broken was left out: unknown identifier")
    assert made["static"]["script"]["language"] == "shell"


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "static: the worker was ended by SIGSEGV"),
        ("bytearray(1 << 31)", "static: MemoryError: "),
    ],
)
async def test_a_parser_that_breaks_costs_its_own_part(
    folder: Path, sample: Put, tmp_path: Path, what: str, sentence: str
) -> None:
    sample(b"#!/bin/sh\necho hello\n")

    made = await report(folder, tmp_path, (sys.executable, "-c", CRASHES.format(what)))

    assert sentence in made["debug"]["errors"]
    assert made["static"] == {}
    assert made["strings"] == ["#!/bin/sh", "echo hello"]
    assert made["target"]["file"]["size"] == 21


async def test_a_signature_that_ends_the_worker_leaves_those_of_the_package(
    folder: Path, sample: Put, tmp_path: Path
) -> None:
    (tmp_path / "signatures").mkdir()
    (tmp_path / "signatures" / "deadly.py").write_text("import os\nos.abort()\n")
    sample(b"#!/bin/sh\neval $(echo " + b"QUJD" * 40 + b" | base64 -d)\n")

    made = await report(folder, tmp_path)

    assert [found["name"] for found in made["signatures"]] == ["obfuscated_script"]
    assert made["info"]["score"] == 1.5
    assert made["info"]["scoring"] == [
        {"signature": "obfuscated_script", "severity": 2, "points": 1.5}
    ]
    [said] = [line for line in made["debug"]["errors"] if line.startswith("signatures: ")]
    assert said.startswith("signatures: the worker was ended by SIGABRT")


async def test_large_logs_are_read_beside_all_else(
    folder: Path, sample: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(b"#!/bin/sh\necho hello\n")
    (folder / "dump.pcap").write_bytes(b"no capture")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "trace.strace").write_bytes(b"no trace at all\n")
    alone = await report(folder, tmp_path)
    asked: list[tuple[int, list[str]]] = []
    run = service._run
    workers: list[Worker] = []

    async def listening(worker: Worker, request: Request, *rest: Any) -> str | None:
        workers.append(worker)
        asked.append((workers.index(worker), request.steps))
        return await run(worker, request, *rest)

    monkeypatch.setattr(service, "_run", listening)
    monkeypatch.setattr(service, "LARGE", 10)

    assert await report(folder, tmp_path) == alone

    (one, parts), (two, behavior), (three, rest) = asked
    assert one != two
    assert three == one, "the worker that read all else goes on"
    assert behavior == ["behavior"]
    assert "network" in parts
    assert "behavior" not in parts
    assert rest == ["signatures", "html", "report"]
    assert len(alone["debug"]["errors"]) == 2


async def test_a_worker_that_falls_silent_is_not_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = SimpleNamespace(steps=("report",), keys=(), files=())
    monkeypatch.setattr(service, "extensions", lambda: alone)
    silent = "import sys, time; sys.stdin.readline(); sys.stdout.close(); time.sleep(60)"
    limits = ProcessingSection(worker_timeout=1)

    with pytest.raises(ProcessingFailed, match="it took longer than 1 s"):
        await make_report(
            folder, TASK, None, limits, tmp_path, worker=(sys.executable, "-I", "-S", "-c", silent)
        )
