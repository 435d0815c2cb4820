"""The monitor's errors in the contract's words, against a QEMU made of a few lines."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from cuckoo_api.machinery import BackendUnavailable, OperationTimedOut
from cuckoo_machinery_qemu import monitor as module
from cuckoo_machinery_qemu.monitor import CommandFailed, Monitor

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


class Qemu:
    """The other end: answers from a table, and says what it is told to."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        """By command: what to return, an exception to refuse with, or None to stay silent."""
        self.events: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        """By command: what is told after its answer; ``JOB`` stands for the job's name."""
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._end)
        self._say(GREETING)
        try:
            text = ""
            while data := await reader.read(4096):
                text += data.decode()
                while text:  # one object follows another, and nothing stands between them
                    request, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:].lstrip()
                    self.asked.append(request)
                    self._answer(request)
        finally:
            self._writer.transport.abort()

    def _answer(self, request: dict[str, Any]) -> None:
        name = request["execute"]
        names = {"id": request["id"]} if "id" in request else {}
        answer = self.answers.get(name, {})
        if isinstance(answer, Exception):
            self._say({"error": {"class": "GenericError", "desc": str(answer)}, **names})
        elif answer is not None:
            self._say({"return": answer, **names})
        for event, data in self.events.get(name, []):
            job = request.get("arguments", {}).get("job-id", "")
            told = json.loads(json.dumps(data).replace("JOB", job))
            self._say(
                {"event": event, "data": told, "timestamp": {"seconds": 1, "microseconds": 0}}
            )

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    def die(self) -> None:
        """As after kill -9."""
        assert self._writer is not None
        self._writer.transport.abort()


@pytest.fixture
async def ends() -> AsyncIterator[tuple[socket.socket, Qemu]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    qemu = Qemu(theirs)
    yield ours, qemu
    ours.close()
    theirs.close()


@pytest.fixture
def told() -> list[str]:
    """The events that the monitor's owner hears of."""
    return []


@pytest.fixture
async def qemu(ends: tuple[socket.socket, Qemu]) -> Qemu:
    return ends[1]


@pytest.fixture
async def monitor(ends: tuple[socket.socket, Qemu], told: list[str]) -> AsyncIterator[Monitor]:
    ours, qemu = ends
    serving = asyncio.create_task(qemu.run())
    made = Monitor("one", lambda name, _data: told.append(name))
    await made.open(ours)
    yield made
    await made.close()
    serving.cancel()
    await asyncio.wait({serving})


async def test_names_are_written_with_hyphens(monitor: Monitor, qemu: Qemu) -> None:
    qemu.answers["query-status"] = {"running": True}
    assert await monitor.run("query-status", some_flag=1) == {"running": True}
    assert qemu.asked[-1]["arguments"] == {"some-flag": 1}


async def test_a_refusal_keeps_qemu_s_own_words(monitor: Monitor, qemu: Qemu) -> None:
    qemu.answers["screendump"] = RuntimeError("no surface")
    with pytest.raises(CommandFailed, match="one: screendump: GenericError: no surface") as caught:
        await monitor.run("screendump")
    assert caught.value.__cause__ is not None


async def test_silence_is_a_time_out(monitor: Monitor, qemu: Qemu) -> None:
    qemu.answers["stop"] = None
    with pytest.raises(OperationTimedOut, match=r"one: stop took more than 0\.05 s"):
        await monitor.run("stop", timeout=0.05)


async def test_an_end_during_a_command_is_unavailable(monitor: Monitor, qemu: Qemu) -> None:
    qemu.answers["stop"] = None
    asking = asyncio.create_task(monitor.run("stop"))
    while not any(request["execute"] == "stop" for request in qemu.asked):
        await asyncio.sleep(0)
    qemu.die()
    with pytest.raises(BackendUnavailable, match="one: QEMU went away during stop"):
        await asking
    with pytest.raises(BackendUnavailable):
        await monitor.run("cont")


async def test_events_are_passed_on(monitor: Monitor, qemu: Qemu, told: list[str]) -> None:
    qemu.events["stop"] = [("STOP", {})]
    qemu.events["cont"] = [("RESUME", {})]
    await monitor.run("stop")
    await monitor.run("cont")
    await monitor.run("query-status")
    assert told == ["STOP", "RESUME"]


def concludes(**other: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("JOB_STATUS_CHANGE", {"id": other.get("id", "JOB"), "status": status})
        for status in ("created", "running", "concluded")
    ]


async def test_a_job_is_awaited_and_dismissed(monitor: Monitor, qemu: Qemu) -> None:
    qemu.events["snapshot-load"] = concludes()
    qemu.answers["query-jobs"] = [{"id": "job1", "status": "concluded"}]
    await monitor.job("snapshot-load", 5, tag="live")
    assert [request["execute"] for request in qemu.asked[-3:]] == [
        "snapshot-load",
        "query-jobs",
        "job-dismiss",
    ]
    assert qemu.asked[-1]["arguments"] == {"id": "job1"}


async def test_a_job_that_failed_says_why(monitor: Monitor, qemu: Qemu) -> None:
    qemu.events["snapshot-load"] = concludes()
    qemu.answers["query-jobs"] = [{"id": "job1", "error": "Snapshot 'live' does not exist"}]
    with pytest.raises(CommandFailed, match="one: snapshot-load: Snapshot 'live' does not exist"):
        await monitor.job("snapshot-load", 5)


async def test_another_job_s_end_is_not_this_one_s(monitor: Monitor, qemu: Qemu) -> None:
    qemu.events["snapshot-load"] = concludes(id="somebody-s")
    with pytest.raises(OperationTimedOut, match=r"snapshot-load took more than 0\.05 s"):
        await monitor.job("snapshot-load", 0.05)


async def test_an_end_during_a_job_is_unavailable(monitor: Monitor, qemu: Qemu) -> None:
    waiting = asyncio.create_task(monitor.job("snapshot-save", 5))
    while not any(request["execute"] == "snapshot-save" for request in qemu.asked):
        await asyncio.sleep(0)
    qemu.die()
    await monitor.close()  # as the process's end does
    with pytest.raises(BackendUnavailable, match="QEMU went away during snapshot-save"):
        await waiting


async def test_a_dump_that_failed_says_so(monitor: Monitor, qemu: Qemu) -> None:
    qemu.events["dump-guest-memory"] = [("DUMP_COMPLETED", {})]
    qemu.answers["query-dump"] = {"status": "failed"}
    with pytest.raises(CommandFailed, match="dump-guest-memory failed"):
        await monitor.dump("memory.dmp", 5)
    qemu.answers["query-dump"] = {"status": "completed"}
    await monitor.dump("memory.dmp", 5)
    assert qemu.asked[-2]["arguments"]["protocol"] == "file:memory.dmp"


async def test_a_qemu_that_ends_before_it_greets(ends: tuple[socket.socket, Qemu]) -> None:
    ours, qemu = ends
    monitor = Monitor("one", lambda *_: None)
    qemu._end.close()
    with pytest.raises(BackendUnavailable, match="one: QEMU ended before it was ready"):
        await monitor.open(ours)
    await monitor.close()
    await monitor.close()


async def test_a_qemu_that_never_greets(
    ends: tuple[socket.socket, Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = ends
    monkeypatch.setattr(module, "COMMAND_TIMEOUT", 0.05)
    monitor = Monitor("one", lambda *_: None)
    with pytest.raises(OperationTimedOut, match="one: QEMU did not greet"):
        await monitor.open(ours)
    await monitor.close()
