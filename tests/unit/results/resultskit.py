"""A result server with one guest's session, and that guest's end of the connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cuckoo_api.results import ResultServer, ResultSession
from cuckoo_api.results.protocol import FOLDERS
from cuckoo_api.settings import ResultServerSection

LIMITS = ResultServerSection(
    upload_max_size=100_000, max_total_size=250_000, max_connections=8, max_files=60
)
GUEST = "127.0.0.1"


class Rig:
    """The guest is at 127.0.0.1."""

    def __init__(self, server: ResultServer, session: ResultSession, folder: Path) -> None:
        self.server = server
        self.session = session
        self.folder = folder

    async def connect(
        self, source: str = GUEST
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.server.ports[0], local_addr=(source, 0)
        )

    async def upload(self, data: bytes, source: str = GUEST) -> None:
        """Send, say that this is all, and wait until the server hangs up."""
        await deliver(*await self.connect(source), data)

    async def send(self, data: bytes) -> None:
        """The same, until no connection is left."""
        await self.upload(data)
        assert await self.session.wait_idle(5, settle=0)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def everything(self) -> set[str]:
        """Every path there is, in the folder and beside it."""
        root = self.folder.parent
        return {str(path.relative_to(root)) for path in root.rglob("*")}

    def listed(self) -> list[dict[str, object]]:
        path = self.folder / "files.json"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def deliver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send, and wait for the server to hang up. It says nothing, ever."""
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        assert await reader.read() == b""
    except OSError:
        pass  # cut off: the test looks at what was kept
    finally:
        writer.close()


async def until(condition: Callable[[], object]) -> None:
    """Let the server work until ``condition()`` holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def make_folder(path: Path) -> Path:
    for name in (*FOLDERS, "logs"):
        (path / name).mkdir(parents=True)
    return path


@asynccontextmanager
async def running(folder: Path, limits: ResultServerSection = LIMITS) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as undo:
        server = ResultServer(limits)
        undo.push_async_callback(server.close)
        await server.open([("127.0.0.1", 0)])
        session = await undo.enter_async_context(server.session(1, folder, ip=GUEST))
        yield Rig(server, session, folder)
