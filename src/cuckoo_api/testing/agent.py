"""The HTTP side of a fake guest: the routes of Cuckoo 2's agent over a dict of files."""

from __future__ import annotations

import asyncio
import io
import posixpath
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FEATURES = ("execpy", "pinning", "logs", "largefile", "unicodepath")
RESTARTS = ("reboot", "shutdown /r")
"""What the commands begin with that restart a guest."""
_LARGEST_BODY = 256 << 20


class FakeAgent:
    """What answers while the machine runs. Files live in ``disk``, by full path.

    ``on_execpy`` is called with the program's path, ``on_restart`` when the guest is told to
    restart. ``running`` unset holds every answer back, as a stopped virtual CPU does; ``silent``
    holds them back for ever.
    """

    def __init__(
        self,
        disk: dict[str, bytes],
        on_execpy: Callable[[str], None],
        on_restart: Callable[[], None] = lambda: None,
        *,
        silent: bool = False,
        version: str = "0.10",
        features: tuple[str, ...] = FEATURES,
    ) -> None:
        self.status = "init"
        self.description = ""
        self.environ: dict[str, str] = {"HOME": "/root", "PATH": "/usr/bin:/bin"}
        self.requests: list[str] = []
        self.commands: list[str] = []
        self.running = asyncio.Event()
        self.running.set()
        self._disk = disk
        self._on_execpy = on_execpy
        self._on_restart = on_restart
        self._silent = silent
        self._about = {"message": "Cuckoo Agent!", "version": version, "features": [*features]}
        self._pinned: str | None = None
        self._made = 0

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[self._middleware()])
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/status", self._get_status),
                web.post("/status", self._post_status),
                web.get("/logs", self._logs),
                web.get("/system", self._system),
                web.get("/environ", self._get_environ),
                web.post("/environ", self._post_environ),
                web.get("/path", self._path),
                web.get("/pinning", self._pinning),
                web.get("/kill", self._kill),
                web.post("/mkdir", self._mkdir),
                web.route("*", "/mktemp", self._mktemp),
                web.route("*", "/mkdtemp", self._mkdtemp),
                web.post("/store", self._store),
                web.post("/retrieve", self._retrieve),
                web.post("/extract", self._extract),
                web.post("/remove", self._remove),
                web.post("/execute", self._execute),
                web.post("/execpy", self._execpy),
            ]
        )
        return app

    def _middleware(self) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.requests.append(f"{request.method} {request.path}")
            if self._silent:
                await asyncio.Event().wait()
            await self.running.wait()
            if self._pinned not in (None, request.remote or ""):
                return _answer(403, "Agent has been pinned to another client")
            return await handler(request)

        return middleware

    async def _index(self, _request: web.Request) -> web.Response:
        return web.json_response(self._about)

    async def _get_status(self, _request: web.Request) -> web.Response:
        return _answer(200, "Analysis status", status=self.status, description=self.description)

    async def _post_status(self, request: web.Request) -> web.Response:
        form = await _form(request)
        if "status" not in form:
            return _answer(400, "No status has been provided")
        self.status, self.description = form["status"], form.get("description", "")
        return _answer(200, "Analysis status updated")

    async def _logs(self, _request: web.Request) -> web.Response:
        return _answer(200, "Agent logs", stdout="", stderr="")

    async def _system(self, _request: web.Request) -> web.Response:
        return _answer(200, "System", system="Linux")

    async def _get_environ(self, _request: web.Request) -> web.Response:
        return _answer(200, "Environment variables", environ=self.environ)

    async def _post_environ(self, request: web.Request) -> web.Response:
        self.environ.update(await _form(request))
        return _answer(200, "Environment variables updated")

    async def _path(self, _request: web.Request) -> web.Response:
        return _answer(200, "Agent path", filepath="/root/agent.py")

    async def _pinning(self, request: web.Request) -> web.Response:
        if self._pinned is not None:
            return _answer(500, "Agent has already been pinned to an IP!")
        self._pinned = request.remote or ""
        return _answer(200, "Successfully pinned Agent", client_ip=self._pinned)

    async def _kill(self, _request: web.Request) -> web.Response:
        self._silent = True
        return _answer(200, "Quit the Agent!")

    async def _mkdir(self, request: web.Request) -> web.Response:
        form = await _form(request)
        if "dirpath" not in form:
            return _answer(400, "No dirpath has been provided")
        return _answer(200, "Successfully created directory")

    async def _mktemp(self, request: web.Request) -> web.Response:
        path = self._temporary(await _form(request))
        self._disk[path] = b""
        return _answer(200, "Successfully created temporary file", filepath=path)

    async def _mkdtemp(self, request: web.Request) -> web.Response:
        path = self._temporary(await _form(request))
        return _answer(200, "Successfully created temporary directory", dirpath=path)

    async def _store(self, request: web.Request) -> web.Response:
        form = await request.post()
        path, file = form.get("filepath"), form.get("file")
        if not isinstance(path, str):
            return _answer(400, "No filepath has been provided")
        if not isinstance(file, web.FileField):
            return _answer(400, "No file has been provided")
        self._disk[path] = file.file.read()
        return _answer(200, "Successfully stored file")

    async def _retrieve(self, request: web.Request) -> web.Response:
        path = (await _form(request)).get("filepath")
        if path is None:
            return _answer(400, "No filepath has been provided")
        if path not in self._disk:
            return _answer(404, "No such file")
        return web.Response(body=self._disk[path], content_type="application/octet-stream")

    async def _extract(self, request: web.Request) -> web.Response:
        form = await request.post()
        folder, file = form.get("dirpath"), form.get("zipfile")
        if not isinstance(folder, str):
            return _answer(400, "No dirpath has been provided")
        if not isinstance(file, web.FileField):
            return _answer(400, "No zip file has been provided")
        try:
            archive = zipfile.ZipFile(io.BytesIO(file.file.read()))
        except zipfile.BadZipFile:
            return _answer(500, "Error extracting zip file")
        for name in archive.namelist():
            self._disk[posixpath.join(folder, name)] = archive.read(name)
        return _answer(200, "Successfully extracted zip file")

    async def _remove(self, request: web.Request) -> web.Response:
        path = (await _form(request)).get("path")
        if path is None:
            return _answer(400, "No path has been provided")
        gone = [name for name in self._disk if name == path or name.startswith(f"{path}/")]
        for name in gone:
            del self._disk[name]
        if not gone:
            return _answer(404, "Path provided does not exist")
        return _answer(200, f"Successfully deleted {'file' if gone == [path] else 'directory'}")

    async def _execute(self, request: web.Request) -> web.Response:
        form = await _form(request)
        if "command" not in form:
            return _answer(400, "No command has been provided")
        self.commands.append(form["command"])
        if form["command"].startswith(RESTARTS):
            self._on_restart()
        return _answer(200, "Successfully executed command", stdout="", stderr="")

    async def _execpy(self, request: web.Request) -> web.Response:
        form = await _form(request)
        if "filepath" not in form:
            return _answer(400, "No Python file has been provided")
        if form["filepath"] not in self._disk:
            return _answer(500, "Error executing Python file")
        self.status = "running"
        self._on_execpy(form["filepath"])
        return _answer(200, "Successfully spawned command")

    def _temporary(self, form: Mapping[str, str]) -> str:
        self._made += 1
        name = f"{form.get('prefix', 'tmp')}{self._made:06}{form.get('suffix', '')}"
        return posixpath.join(form.get("dirpath") or "/tmp", name)  # noqa: S108 - a name in the guest


async def _form(request: web.Request) -> dict[str, str]:
    return {key: value for key, value in (await request.post()).items() if isinstance(value, str)}


def _answer(code: int, message: str, /, **fields: object) -> web.Response:
    return web.json_response({"message": message, **fields}, status=code)
