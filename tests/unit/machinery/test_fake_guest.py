"""The fake guest keeps to the agent's protocol and the result server's, and dies as told."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import (
    BackendConfig,
    GuestAddress,
    MachineConfig,
    MachineryBackend,
    MachineState,
)
from cuckoo_api.testing.fake import (
    Dies,
    FakeGuest,
    FakeHypervisor,
    Script,
    fake_plugin,
    scripts,
)

CONF = """\
[analysis]
category = file
file_name = sample.elf
ip = 192.168.55.1
port = 2042
"""


class Host:
    """A started machine, an HTTP client for its agent, and what came out of it."""

    def __init__(
        self, world: FakeHypervisor, backend: MachineryBackend, address: GuestAddress
    ) -> None:
        self.world = world
        self.backend = backend
        self.address = address
        self.received: list[bytes] = []
        path = address.agent.removeprefix("unix:")
        self.client = aiohttp.ClientSession(
            "http://agent", connector=aiohttp.UnixConnector(path), raise_for_status=True
        )

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.received.append(await reader.read(-1))
        finally:
            writer.close()

    async def get(self, path: str) -> dict[str, object]:
        async with self.client.get(path) as response:
            return await response.json()

    async def post(self, path: str, /, **form: object) -> dict[str, object]:
        async with self.client.post(path, data=form) as response:
            return await response.json()

    async def analyse(self) -> None:
        """The sequence of a Cuckoo 2 host, up to the start of the analyzer."""
        folder = (await self.post("/mkdtemp"))["dirpath"]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("analyzer.py", "print()")
        buffer.seek(0)
        await self.post("/extract", dirpath=folder, zipfile=buffer)
        await self.post(
            "/store", filepath=f"{folder}/analysis.conf", file=io.BytesIO(CONF.encode())
        )
        await self.post("/store", filepath="/tmp/sample.elf", file=io.BytesIO(b"\x7fELF"))
        await self.post("/execpy", filepath=f"{folder}/analyzer.py", **{"async": "1"})

    async def ended(self) -> str:
        """The agent's status once it is not ``running`` any more."""
        guest = self.world.machines["one"].guest
        assert guest is not None
        assert guest._analysis is not None
        async with asyncio.timeout(5):
            await asyncio.wait({guest._analysis})
        return str((await self.get("/status"))["status"])


@asynccontextmanager
async def host(guest: FakeGuest, folder: Path) -> AsyncIterator[Host]:
    async with FakeHypervisor() as world:
        world.add("one", guest=guest)
        machine = MachineConfig(label="one", name="one", resultserver_ip="192.168.55.1")
        config = BackendConfig(name="fake", machines=(machine,), state_dir=folder)
        backend = load_plugins([fake_plugin(world)])["fake"].backend(config)
        await backend.open()
        there = Host(world, backend, backend.address("one"))
        server = await asyncio.start_unix_server(there.receive, there.address.sockets["results"])
        await backend.restore_and_start("one", "")
        try:
            yield there
        finally:
            await there.client.close()
            await backend.power_off("one")
            server.close()
            await server.wait_closed()
            await backend.close()
    assert not Path(there.address.agent.removeprefix("unix:")).parent.exists()


async def test_it_plays_an_analysis(tmp_path: Path) -> None:
    async with host(FakeGuest(), tmp_path) as there:
        about = await there.get("/")
        assert about["version"] == "0.10"
        assert "execpy" in about["features"]
        assert (await there.get("/status"))["status"] == "init"
        await there.analyse()
        assert await there.ended() == "complete"
        [run] = there.world.machines["one"].guest.runs
        assert run.sample == b"\x7fELF"
        assert [message.split(b"\n")[0] for message in there.received] == [
            b"FILE",
            b"FILE 2",
            b"LOG",
        ]
        assert there.received[0] == b"FILE\nlogs/trace.strace\n" + scripts.TRACE
        assert there.received[1].endswith(
            b"_dropped.txt\n/tmp/dropped.txt\n312\n" + scripts.DROPPED
        )
        assert "/tmp/dropped.txt" in there.world.machines["one"].disk
        await there.backend.restore_and_start("one", "")
        assert there.world.machines["one"].disk == {}


async def test_files_in_the_guest(tmp_path: Path) -> None:
    async with host(FakeGuest(), tmp_path) as there:
        path = (await there.post("/mktemp", suffix=".bin"))["filepath"]
        await there.post("/store", filepath=path, file=io.BytesIO(b"content"))
        async with there.client.post("/retrieve", data={"filepath": path}) as response:
            assert await response.read() == b"content"
        await there.post("/remove", path=path)
        with pytest.raises(aiohttp.ClientResponseError, match="404"):
            await there.post("/retrieve", filepath=path)
        with pytest.raises(aiohttp.ClientResponseError, match="400"):
            await there.post("/store", filepath=path)
        with pytest.raises(aiohttp.ClientResponseError, match="500"):
            await there.post("/execpy", filepath="/nonesuch.py")


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (scripts.fails, "failed"),
        (scripts.garbage, "complete"),
        (partial(scripts.floods, size=1 << 18, connections=4), "complete"),
    ],
)
async def test_scripts_that_end(tmp_path: Path, script: Script, status: str) -> None:
    async with host(FakeGuest(script), tmp_path) as there:
        await there.analyse()
        assert await there.ended() == status
        assert there.received


async def test_a_script_that_raises_is_an_exception(tmp_path: Path) -> None:
    async def broken(run: object) -> None:
        raise ValueError("out of cheese")

    async with host(FakeGuest(broken), tmp_path) as there:
        await there.analyse()
        assert await there.ended() == "exception"
        assert (await there.get("/status"))["description"] == "ValueError: out of cheese"


async def test_nothing_but_the_result_server_is_on_the_network(tmp_path: Path) -> None:
    async def curious(run) -> None:
        run.conf["port"] = "80"
        async with run.connect(b"GET / HTTP/1.0\n\n"):
            pass

    async with host(FakeGuest(curious), tmp_path) as there:
        await there.analyse()
        assert await there.ended() == "exception"
        assert there.received == []


async def test_a_machine_that_dies_takes_its_agent_along(tmp_path: Path) -> None:
    async with host(FakeGuest(scripts.dies), tmp_path) as there:
        await there.analyse()
        await there.world.until(lambda: there.world.machines["one"].state is MachineState.ABORTED)
        with pytest.raises(aiohttp.ClientError):
            await there.get("/status")


async def test_an_agent_that_is_killed_never_answers(tmp_path: Path) -> None:
    async with host(FakeGuest(scripts.kills_agent), tmp_path) as there:
        await there.analyse()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.ended(), 0.05)
        assert there.world.running() == ["one"]


async def test_a_silent_agent_takes_connections_only(tmp_path: Path) -> None:
    async with host(FakeGuest(silent=True), tmp_path) as there:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.get("/"), 0.02)
        assert there.world.machines["one"].guest.requests == ["GET /"]


async def test_an_absent_agent_is_not_there(tmp_path: Path) -> None:
    async with host(FakeGuest(absent=True), tmp_path) as there:
        with pytest.raises(aiohttp.ClientConnectionError):
            await there.get("/")


async def test_a_paused_guest_does_not_answer(tmp_path: Path) -> None:
    async with host(FakeGuest(), tmp_path) as there:
        await there.backend.pause("one")
        asking = asyncio.create_task(there.get("/"))
        guest = there.world.machines["one"].guest
        while not guest.requests:
            await asyncio.sleep(0)
        assert not asking.done()
        await there.backend.resume("one")
        assert (await asking)["message"] == "Cuckoo Agent!"


async def test_a_guest_on_the_loopback_network(tmp_path: Path) -> None:
    """Seen from its own address, as the result server tells guests apart."""
    seen: list[str] = []

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await reader.read(-1)
        writer.close()

    async def hello(run) -> None:
        async with run.log() as log:
            await log("hello")
        run.status("complete")

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    guest = FakeGuest(hello, ip="127.0.55.11", port=port)  # free on the one, so on the other
    async with FakeHypervisor() as world:
        world.add("one", guest=guest)
        await world.restore_and_start("one", "")
        async with aiohttp.ClientSession(f"http://{guest.address(tmp_path, 'one')}") as client:
            conf = f"[analysis]\nip = 127.0.0.1\nport = {port}\n"
            for path, content in (("/a/analyzer.py", b""), ("/a/analysis.conf", conf.encode())):
                await client.post("/store", data={"filepath": path, "file": io.BytesIO(content)})
            await client.post("/execpy", data={"filepath": "/a/analyzer.py"})
            await asyncio.wait({guest._analysis})
            answer = await (await client.get("/status")).json()
        assert answer["status"] == "complete"
    assert seen == ["127.0.55.11"]
    server.close()
    await server.wait_closed()


async def test_a_start_that_is_followed_by_death() -> None:
    async with FakeHypervisor() as world:
        world.add("one", with_guest=False)
        world.behave("restore_and_start", Dies(after=0))
        await world.restore_and_start("one", "")
        await world.until(lambda: world.running() == [])
        assert world.history("one") == [MachineState.RUNNING, MachineState.ABORTED]
        assert world.starts("one") == 1
