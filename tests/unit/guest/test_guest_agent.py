"""The agent as a client sees it, on a real socket."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

CONTROLLER = "127.0.0.2"
"""Another address of this host, so that the agent's own is a stranger's once it is pinned."""


class Caller:
    """Asks the agent from one source address."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self._session.get(path) as response:
            return response.status, await response.json()

    async def post(self, path: str, data: Any = None) -> tuple[int, dict[str, Any]]:
        async with self._session.post(path, data=data) as response:
            return response.status, await response.json()

    async def raw(self, path: str, data: Any) -> bytes:
        async with self._session.post(path, data=data) as response:
            assert response.status == 200
            return await response.read()

    async def status_of(self, *ends: str) -> dict[str, Any]:
        """The first status among these; every exchange wakes the agent, so this does not spin."""
        async with asyncio.timeout(10):
            while True:
                _, answer = await self.get("/status")
                if answer["status"] in ends:
                    return answer
                await asyncio.sleep(0.01)


@pytest.fixture
async def stranger(agent: str) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(f"http://{agent}") as session:
        yield Caller(session)


@pytest.fixture
async def shared(shared_agent: str) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(f"http://{shared_agent}") as session:
        yield Caller(session)


@pytest.fixture
async def caller(agent: str) -> AsyncIterator[Caller]:
    connector = aiohttp.TCPConnector(local_addr=(CONTROLLER, 0))
    async with aiohttp.ClientSession(f"http://{agent}", connector=connector) as session:
        yield Caller(session)


async def test_index_tells_version_and_features(shared: Caller) -> None:
    status, answer = await shared.get("/")
    assert status == 200
    assert answer["message"] == "Cuckoo Agent!"
    assert {"execpy", "pinning", "logs", "largefile", "unicodepath"} <= set(answer["features"])
    assert answer["version"]
    assert answer["analyzer"] is None


async def test_environment_system_and_path(caller: Caller, guest_tmp: Path) -> None:
    _, answer = await caller.get("/environ")
    assert answer["environ"]["TMPDIR"] == str(guest_tmp)
    assert (await caller.get("/system"))[1]["system"] == "Linux"
    assert (await caller.get("/path"))[1]["filepath"].endswith("payload/agent.py")
    assert set((await caller.get("/logs"))[1]) == {"message", "stdout", "stderr"}


async def test_stored_file_comes_back_unchanged(caller: Caller, guest_tmp: Path) -> None:
    content = bytes(range(256)) * 9000 + b"\r\n--\r\n"
    path = str(guest_tmp / "näme with spaces")
    with io.BytesIO(content) as file:
        status, answer = await caller.post("/store", {"filepath": path, "file": file})
    assert (status, answer["message"]) == (200, "Successfully stored file")
    assert await caller.raw("/retrieve", {"filepath": path}) == content
    # nothing is left of the upload itself
    assert [entry.name for entry in guest_tmp.iterdir()] == ["näme with spaces"]


@pytest.mark.parametrize(
    ("path", "form", "status", "message"),
    [
        ("/store", {"file": "x"}, 400, "No filepath has been provided"),
        ("/store", {"filepath": "/x"}, 400, "No file has been provided"),
        ("/retrieve", {}, 400, "No filepath has been provided"),
        ("/retrieve", {"filepath": "/nonexistent"}, 404, "Cannot read the file"),
        ("/mkdir", {}, 400, "No dirpath has been provided"),
        ("/mkdir", {"dirpath": "/"}, 500, "Error creating directory"),
        ("/mkdir", {"dirpath": "/x", "mode": "rwx"}, 400, "The mode is not a number"),
        ("/mkdtemp", {"dirpath": "/nonexistent"}, 500, "Error creating temporary directory"),
        ("/mktemp", {"dirpath": "/nonexistent"}, 500, "Error creating temporary file"),
        ("/extract", {"dirpath": "/x"}, 400, "No zip file has been provided"),
        ("/remove", {}, 400, "No path has been provided"),
        ("/remove", {"path": "/nonexistent"}, 404, "Path provided does not exist"),
        ("/execute", {}, 400, "No command has been provided"),
        ("/execute", {"command": "/nonexistent"}, 500, "Error executing command"),
        ("/execpy", {}, 400, "No Python file has been provided"),
        ("/execpy", {"filepath": "/nonexistent"}, 400, "No such Python file or cwd"),
        ("/status", {}, 400, "No status has been provided"),
        ("/nonexistent", {}, 404, "No such route"),
        ("/environ", {}, 405, "No such method"),
    ],
)
async def test_faults_are_told(
    shared: Caller, path: str, form: dict[str, str], status: int, message: str
) -> None:
    got, answer = await shared.post(path, form)
    assert (got, answer["error_code"]) == (status, status)
    assert answer["message"].startswith(message)


async def test_folders_and_files_are_made_and_removed(shared: Caller, guest_tmp: Path) -> None:
    _, made = await shared.post("/mkdtemp", {"dirpath": str(guest_tmp), "prefix": "a-"})
    folder = Path(made["dirpath"])
    assert folder.is_dir()
    assert folder.name.startswith("a-")
    _, made = await shared.post("/mktemp", {"dirpath": str(folder), "suffix": ".x"})
    assert Path(made["filepath"]).suffix == ".x"
    assert (await shared.post("/mkdir", {"dirpath": str(folder / "sub")}))[0] == 200
    assert (await shared.post("/remove", {"path": made["filepath"]}))[0] == 200
    assert [entry.name for entry in folder.iterdir()] == ["sub"]
    assert (await shared.post("/remove", {"path": str(folder)}))[0] == 200
    assert not folder.exists()


async def test_zip_is_extracted_and_stays_inside(shared: Caller, guest_tmp: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("deep/file.txt", "content")
        archive.writestr("../escaped.txt", "no")
    target = guest_tmp / "target"
    form = {"dirpath": str(target), "zipfile": io.BytesIO(data.getvalue())}
    assert (await shared.post("/extract", form))[0] == 200
    assert (target / "deep/file.txt").read_text() == "content"
    assert not (guest_tmp / "escaped.txt").exists()
    form = {"dirpath": str(target), "zipfile": io.BytesIO(b"no zip")}
    assert (await shared.post("/extract", form))[1]["message"] == "Error extracting zip file"


async def test_command_runs_with_and_without_a_shell(shared: Caller, guest_tmp: Path) -> None:
    form = {"command": "echo 'one  two' $HOME", "cwd": str(guest_tmp)}
    _, answer = await shared.post("/execute", form)
    assert answer["stdout"] == "one  two $HOME\n"
    _, answer = await shared.post("/execute", {"command": "pwd; echo no >&2; exit 3", "shell": "1"})
    assert (answer["stderr"], answer["exit_code"]) == ("no\n", 3)


async def test_python_file_runs_as_main_in_a_fork_of_the_agent(
    caller: Caller, guest_tmp: Path
) -> None:
    (guest_tmp / "helper.py").write_text("value = 42\n")
    script = guest_tmp / "script.py"
    script.write_text(
        "import json, os, sys, helper\n"
        "with open('/proc/%d/cmdline' % os.getppid()) as file: parent = file.read()\n"
        "print(json.dumps([__name__, sys.argv, os.getcwd(), helper.value, 'agent.py' in parent]))\n"
        "print('complaint', file=sys.stderr)\n"
        "sys.exit(5)\n"
    )
    _, answer = await caller.post("/execpy", {"filepath": str(script), "cwd": str(guest_tmp)})
    printed = json.loads(answer["stdout"])
    assert printed == ["__main__", [str(script)], str(guest_tmp), 42, True]
    assert (answer["stderr"], answer["exit_code"]) == ("complaint\n", 5)
    # the agent itself is none the worse
    assert (await caller.get("/status"))[1]["status"] == "init"


@pytest.mark.parametrize(
    ("body", "status", "description"),
    [
        ("pass", "complete", ""),
        ("import sys; sys.exit(2)", "failed", "exit code 2"),
        ("raise ValueError('ouch')", "failed", "ValueError: ouch"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "exit code -9"),
    ],
)
async def test_end_of_an_asynchronous_script_sets_the_status(
    caller: Caller, guest_tmp: Path, body: str, status: str, description: str
) -> None:
    script = guest_tmp / "script.py"
    script.write_text(body)
    _, answer = await caller.post("/execpy", {"filepath": str(script), "async": "yes"})
    assert answer["message"] == "Successfully spawned command"
    assert answer["process_id"] > 0
    answer = await caller.status_of("complete", "failed")
    assert answer["status"] == status
    assert description in answer["description"]


async def test_pinned_agent_serves_its_controller_only(caller: Caller, stranger: Caller) -> None:
    assert (await stranger.get("/"))[0] == 200
    assert (await caller.get("/pinning"))[1]["client_ip"] == CONTROLLER
    assert (await stranger.get("/"))[0] == 403
    assert (await stranger.post("/execute", {"command": "id"}))[0] == 403
    assert (await stranger.get("/kill"))[0] == 403
    assert (await caller.get("/pinning"))[0] == 500
    # a status is taken from inside the guest, as Cuckoo's analyzers post it
    assert (await stranger.post("/status", {"status": "complete"}))[0] == 200
    assert (await caller.get("/status"))[1]["status"] == "complete"


async def test_status_cannot_be_forged_once_the_analyzer_has_shown_its_key(
    caller: Caller, stranger: Caller, guest_tmp: Path
) -> None:
    await caller.get("/pinning")
    script = guest_tmp / "script.py"
    script.write_text(
        "import os, time, urllib.request as r\n"
        "url = 'http://127.0.0.1:%s/status' % os.environ['CUCKOO_AGENT_PORT']\n"
        "key = os.environ['CUCKOO_STATUS_KEY']\n"
        "r.urlopen(url, data=('status=running&description=mine&key=' + key).encode())\n"
        "time.sleep(60)\n"
    )
    _, started = await caller.post("/execpy", {"filepath": str(script), "async": "yes"})
    while (await caller.get("/status"))[1]["description"] != "mine":
        await asyncio.sleep(0.01)
    assert (await stranger.post("/status", {"status": "complete"}))[0] == 403
    assert (await stranger.post("/status", {"status": "complete", "key": "guess"}))[0] == 403
    assert (await caller.get("/status"))[1]["status"] == "running"
    await caller.post("/execute", {"command": f"kill -9 {started['process_id']}"})


async def test_an_analysis_needs_an_installed_analyzer(shared: Caller) -> None:
    status, answer = await shared.post("/analysis", {"conf": "[analysis]"})
    assert (status, answer["message"]) == (404, "No analyzer is installed")
    assert (await shared.post("/analysis", {}))[0] == 400


async def test_slow_clients_hold_nobody_up(agent: str, caller: Caller) -> None:
    host, port = agent.split(":")
    writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(20)]
    for writer in writers:
        writer.write(b"POST /store HTTP/1.1\r\nContent-Le")
    async with asyncio.timeout(5):
        assert (await caller.get("/"))[0] == 200
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_strangers_get_few_connections(agent: str, caller: Caller) -> None:
    await caller.get("/pinning")
    host, port = agent.split(":")
    pairs = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
    async with asyncio.timeout(5):
        # the ninth and later ones are closed at once, those before wait for a request
        for reader, _ in pairs[8:]:
            assert await reader.read() == b""
        assert (await caller.get("/status"))[0] == 200
    for _, writer in pairs:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /store HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40000, b"431"),
        (b"POST /status HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", b"413"),
    ],
)
async def test_malformed_requests_are_refused(
    shared_agent: str, request_: bytes, status: bytes
) -> None:
    host, port = shared_agent.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_)
    if status == b"413":
        writer.write(bytes(9999999))
    async with asyncio.timeout(10):
        assert (await reader.readline()).split()[1] == status
    writer.close()


async def test_http_1_0_and_keep_alive(shared_agent: str) -> None:
    host, port = shared_agent.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /status HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(5):
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.index(b"keep-alive") < answers.index(b"close")
    writer.close()


async def test_kill_ends_the_agent(agent: str, caller: Caller) -> None:
    assert (await caller.get("/kill"))[1]["message"] == "Quit the Cuckoo Agent"
    host, port = agent.split(":")
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match=r"refused|Connect"):
            while True:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
