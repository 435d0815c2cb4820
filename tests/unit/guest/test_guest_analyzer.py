"""The Linux analyzer on this host, driven through the agent as in a guest. Needs strace."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from guestkit import ResultListener, payload_module, running_agent

from cuckoo_api.guest import GuestClient, GuestJob, Outcome, analyzer_zip
from cuckoo_api.guest.analyzer import PAYLOAD
from cuckoo_api.model.task import Task

pytestmark = pytest.mark.slow


class Guest:
    """This host as a guest; ``run`` makes one analysis."""

    def __init__(self, address: str, tmp: Path, results: ResultListener, task: Task) -> None:
        self._address = address
        self.tmp = tmp
        self._results = results
        self._task = task

    async def run(
        self, source: str, *, timeout: int = 20, name: str = "sample.sh", **changes: object
    ) -> Outcome:
        sample = self.tmp.parent / "submitted"
        sample.write_text(source)
        archive = await asyncio.to_thread(
            analyzer_zip, "linux", self.tmp.parent, self.tmp.parent / "cache"
        )
        job = GuestJob(
            task=msgspec.structs.replace(self._task, target=name, **changes),
            sample=sample,
            analyzer=archive,
            resultserver_ip="127.0.0.1",
            resultserver_port=self._results.port,
            timeout=timeout,
        )
        async with GuestClient(self._address) as guest:
            await guest.wait_ready(10)
            await guest.start(job)
            return await guest.wait(timeout + 20, self._results.log_closed)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The agent with the analyzer beside it, as an image of a guest has them."""
    folder = tmp_path / "image"
    shutil.copytree(PAYLOAD / "analyzers/linux", folder / "analyzer")
    return Path(shutil.copy(PAYLOAD / "agent.py", folder))


@pytest.fixture(params=["uploaded", "standby"])
def guest(
    request: pytest.FixtureRequest,
    guest_tmp: Path,
    image: Path,
    results: ResultListener,
    task: Task,
) -> Iterator[Guest]:
    agent = PAYLOAD / "agent.py" if request.param == "uploaded" else image
    with running_agent(guest_tmp, agent) as address:
        yield Guest(address, guest_tmp, results, task)


SAMPLE = """#!/bin/sh
echo dropped > dropped.txt
cut -d" " -f19 /proc/self/stat > nice.txt
tracer=$(sed -n "s/^TracerPid:\t//p" /proc/self/status)
cut -d" " -f19 "/proc/$(cut -d" " -f4 "/proc/$tracer/stat")/stat" >> nice.txt
echo secret > "$TMP/gone.txt"; sleep 0.05; rm "$TMP/gone.txt"
ln -s /etc/passwd link; mkfifo fifo
(sleep 0.1; echo child > child.txt; mv child.txt "renamed child.txt") &
echo complaint >&2
cat < /dev/null > /dev/null
rm "$0"
exit 3
"""


async def test_whole_analysis(guest: Guest, results: ResultListener) -> None:
    outcome = await guest.run(SAMPLE.replace("$TMP", str(guest.tmp)))
    assert (outcome.state, outcome.description) == ("complete", "")
    log = results.log.decode()
    assert "The sample ended with code 3." in log
    assert "Standard error of the sample: complaint" in log
    assert "ERROR" not in log
    first, *_, last = results.trace.strip().splitlines()
    assert f'execve("{guest.tmp}/sample.sh", ["{guest.tmp}/sample.sh"]' in first
    assert last.endswith("+++")
    assert 'execve("/usr/bin/rm"' in results.trace
    by_name = {Path(file.path).name: file for file in results.files if file.path}
    contents = {name: bytes(file.content) for name, file in by_name.items()}
    # a name that a file had for an instant may be missed; its content comes under the other one
    contents.pop("child.txt", None)
    # it runs before the sample, which does not: else what is deleted at once is missed
    sample, analyzer = map(int, contents.pop("nice.txt").split())
    assert analyzer == sample - (0 if os.geteuid() else 10)
    # what was deleted before the end is there, links and FIFOs are not
    assert contents == {
        "dropped.txt": b"dropped\n",
        "gone.txt": b"secret\n",
        "renamed child.txt": b"child\n",
    }
    dropped = by_name["dropped.txt"]
    assert dropped.path.startswith(f"{guest.tmp}/work-")
    assert dropped.destination.startswith("files/")
    assert dropped.pids == [first.split()[0]]


@pytest.mark.parametrize("guest", ["standby"], indirect=True)
async def test_time_over_ends_all_of_it(guest: Guest, results: ResultListener) -> None:
    source = "#!/bin/sh\n(trap '' TERM INT; setsid sleep 7777) &\necho x > made\nwait\n"
    outcome = await guest.run(source, timeout=1)
    assert outcome.state == "complete"
    assert "Analysis timeout hit" in results.log.decode()
    assert results.trace.count("killed by SIGKILL") >= 2
    assert [Path(file.path).name for file in results.files if file.path] == ["made"]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(command == b"sleep\x007777\x00" for command in commands)


@pytest.mark.parametrize("guest", ["standby"], indirect=True)
async def test_result_server_out_of_reach(guest: Guest, results: ResultListener) -> None:
    results.port = 1
    results.log_closed.set()
    outcome = await guest.run("#!/bin/sh\ntouch made\n")
    assert outcome.state == "exception"
    assert "cannot reach the result server" in outcome.description


@pytest.mark.parametrize(
    ("name", "source", "changes", "words"),
    [
        ("a b.py", "print(1)", {}, '["/usr/bin/python3", "{tmp}/a b.py"]'),
        ("x", "echo 1", {}, '["/bin/sh", "{tmp}/x"]'),
        ("x", "print(1)", {"package": "python"}, '["/usr/bin/python3", "{tmp}/x"]'),
        (
            "x.sh",
            "#!/bin/sh\n",
            {"package": "exe", "options": {"arguments": "-a 'b c' $HOME"}},
            '["{tmp}/x.sh", "-a", "b c", "$HOME"]',
        ),
    ],
)
async def test_ways_to_run(
    guest_tmp: Path,
    agent: str,
    results: ResultListener,
    task: Task,
    name: str,
    source: str,
    changes: dict[str, object],
    words: str,
) -> None:
    outcome = await Guest(agent, guest_tmp, results, task).run(source, name=name, **changes)
    assert outcome.state == "complete"
    assert words.replace("{tmp}", str(guest_tmp)) in results.trace.splitlines()[0]


async def test_standby_ends_with_its_agent(image: Path, guest_tmp: Path) -> None:
    with running_agent(guest_tmp, image):
        assert [path.name[:6] for path in guest_tmp.iterdir()] == ["trace-"]
    async with asyncio.timeout(5):
        while list(guest_tmp.iterdir()):
            await asyncio.sleep(0.01)


HIDDEN = """#!/usr/bin/env python3
import os, subprocess
words = bytes(b ^ 1 for b in b"LDLNSX,NOMX,VNSER")
child = os.fork()
if child == 0:
    mine = words + b"-of-the-child"
    os._exit(0)
os.waitpid(child, 0)
subprocess.run(["true"])
os._exit(0)
"""


@pytest.mark.parametrize("guest", ["standby"], indirect=True)
async def test_memory_is_dumped_at_the_end_of_each_process(
    guest: Guest, results: ResultListener
) -> None:
    outcome = await guest.run(HIDDEN, name="hidden.py", options={"procmemdump": "yes"})
    assert outcome.state == "complete"
    log = results.log.decode()
    assert "Sent the memory of 3 processes." in log
    assert "WARNING" not in log
    dumps = {file.destination: file for file in results.files if file.path and file.pids}
    ends = {line.split()[0] for line in results.trace.splitlines() if "+++" in line}
    assert set(dumps) == {f"memory/{pid}-1.dmp" for pid in ends}
    # what never lay on the disk is in what each of the two had in memory, and not in the third
    mine = [b"MEMORY-ONLY-WORDS" in dump.content for dump in dumps.values()]
    assert sorted(mine) == [False, True, True]
    [child] = [d for d in dumps.values() if b"MEMORY-ONLY-WORDS-of-the-child" in d.content]
    assert "/python3" in child.path
    path = guest.tmp.parent / "child.core"
    path.write_bytes(child.content)
    shown = await asyncio.to_thread(
        subprocess.run, ["readelf", "-lnW", path], capture_output=True, text=True, check=True
    )
    assert "CORE (Core file)" in shown.stdout
    assert shown.stderr == ""
    assert "NT_FILE (mapped files)" in shown.stdout


@pytest.mark.parametrize("guest", ["uploaded"], indirect=True)
async def test_memory_of_what_lives_to_the_end_is_dumped(
    guest: Guest, results: ResultListener
) -> None:
    source = "#!/bin/sh\necho started > made\nwait_for=$(printf '%s-%s' WORDS FROM-MEMORY)\n"
    source += "exec 3<> fifo; read line <&3\n"
    outcome = await guest.run(
        "#!/bin/sh\nmkfifo fifo\n" + source, timeout=2, options={"procmemdump": "1"}
    )
    assert outcome.state == "complete"
    assert "Analysis timeout hit" in results.log.decode()
    [survivor] = [line.split()[0] for line in results.trace.splitlines() if "SIGKILL" in line]
    dump = results.file(f"memory/{survivor}-1.dmp")
    assert b"WORDS-FROM-MEMORY" in dump.content
    assert dump.pids == [survivor]


@pytest.mark.parametrize("guest", ["standby"], indirect=True)
async def test_many_processes_of_one_program_do_not_use_up_the_room(
    guest: Guest, results: ResultListener
) -> None:
    source = "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9 10 11 12; do env true; done\n"
    outcome = await guest.run(source, options={"procmemdump": "yes"})
    assert outcome.state == "complete"
    programs = [Path(file.path).name for file in results.files if "memory/" in file.destination]
    assert (programs.count("true"), len(programs)) == (8, 9)
    assert "The memory of 4 more is left out." in results.log.decode()
    assert results.trace.count("+++ exited with 0 +++") == 13


def test_where_there_is_no_gate_the_sample_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exitgate = payload_module("exitgate")

    def refused() -> int:
        raise OSError("no such filter")

    monkeypatch.setattr(exitgate, "_install", refused)
    gate = exitgate.ExitGate(lambda pid: None)
    assert gate.start(lambda: "begun") == "begun"
    assert gate.fault == "no such filter"
    gate.close()


def test_each_end_is_looked_at_and_no_other_program_is_held() -> None:
    exitgate = payload_module("exitgate")
    seen: list[int] = []
    gate = exitgate.ExitGate(seen.append)
    command = ["sh", "-c", "sh -c 'exit 3'; exit 4"]
    with gate.start(lambda: subprocess.Popen(command)) as process:
        # not behind the gate: its end is nobody's business
        assert subprocess.run(["sh", "-c", "exit 5"], check=False).returncode == 5
        assert process.wait(10) == 4
    gate.close()
    assert len(seen) == 2
    assert process.pid in seen


def test_a_dump_is_cut_in_its_largest_region() -> None:
    memory = payload_module("processmemory")
    regions = memory._regions(os.getpid(), 1 << 20)
    assert sum(region.kept for region in regions) == 1 << 20
    whole = [r.size for r in regions if r.kept == r.size]
    cut = [r for r in regions if r.is_worth_it and 0 < r.kept < r.size]
    assert len(cut) <= 1
    assert not cut or cut[0].size >= max(whole)
