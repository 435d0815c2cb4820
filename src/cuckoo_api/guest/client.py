"""Speaks to the agent in a guest. Whatever answers there may be in the sample's hands."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import msgspec
import structlog

from cuckoo_api.guest.analyzer import digest_of
from cuckoo_api.guest.errors import AgentRefused, AgentUnreachable, GuestError
from cuckoo_api.guest.exchange import AgentSession, Reply
from cuckoo_api.guest.job import GuestJob
from cuckoo_api.guest.multipart import FilePart, Multipart

__all__ = ["AgentInfo", "GuestClient", "GuestError", "GuestJob", "Outcome"]

log = structlog.get_logger()

CONNECT_TIMEOUT = 0.25
"""For one attempt while waiting: a lost SYN is sent again only after a second."""
STATUS_TIMEOUT = 5.0
STATUS_INTERVAL = 5.0
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.25
LOST_AFTER = 10.0
"""Seconds without an answer, counted once the results have ended as well."""

State = Literal["complete", "failed", "exception", "timeout", "lost"]
ENDS: dict[str, State] = {"complete": "complete", "failed": "failed", "exception": "exception"}


class InstalledAnalyzer(msgspec.Struct, frozen=True):
    """An analyzer that the guest's image came with."""

    digest: str
    folder: str


class AgentInfo(msgspec.Struct, frozen=True):
    """What an agent says of itself. The last two are known by this project's own agent only."""

    message: str = ""
    version: str = ""
    features: tuple[str, ...] = ()
    analyzer: InstalledAnalyzer | None = None
    temporary: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an analysis ended.

    ``complete``, ``failed`` and ``exception`` are the agent's words. ``timeout``: it was still
    running; ``lost``: nothing answered any more.
    """

    state: State
    description: str = ""


@dataclass(frozen=True, slots=True)
class _Places:
    """Folders of the guest, in its own notation."""

    analyzer: str
    temporary: str
    separator: str

    def path(self, name: str) -> str:
        """A file in the analyzer's folder."""
        return f"{self.analyzer}{self.separator}{name}"


class _Environ(msgspec.Struct):
    environ: dict[str, str]


class _Folder(msgspec.Struct):
    dirpath: str


class _Status(msgspec.Struct):
    status: str
    description: str | None = None


class _Executed(msgspec.Struct):
    stdout: str = ""
    stderr: str = ""


class GuestClient(AgentSession):
    """What an analysis asks of an agent.

    Every method raises a GuestError when the agent does not do its part.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._info = AgentInfo()

    async def wait_ready(self, timeout: float) -> AgentInfo:
        """Return as soon as the agent answers. Raises AgentUnreachable after ``timeout`` s."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = FIRST_PAUSE
        last: GuestError | None = None
        while (left := deadline - loop.time()) > 0:
            limits = aiohttp.ClientTimeout(total=min(left, 5.0), sock_connect=CONNECT_TIMEOUT)
            try:
                self._info = await self._ask("GET", "/", AgentInfo, limits=limits)
            except GuestError as error:
                last = error
            else:
                return self._info
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(pause * 2, LONGEST_PAUSE)
        raise AgentUnreachable(
            f"The agent at {self._address} did not answer within {timeout:g} s",
            log=str(last),
        )

    async def start(self, job: GuestJob) -> None:
        """Prepare the guest and start the analyzer; wait_ready comes first."""
        if self._is_installed(job.analyzer):
            await self._start_installed(job)
            return
        await self._pin()
        places = await self._upload_analyzer(job.analyzer)
        await self.store(places.path("analysis.conf"), job.conf().encode())
        if job.sample is not None:
            sample = f"{places.temporary}{places.separator}{job.file_name}"
            await self.store(sample, job.sample)
        await self._run_analyzer(places)

    async def wait(self, timeout: float, hint: asyncio.Event) -> Outcome:
        """Wait until the analyzer ended, at most ``timeout`` s.

        ``hint`` says that the results have ended: then the status is asked for at once, and an
        agent that stays silent is given up early. Otherwise it is asked for every few seconds,
        and silence is borne: a sample may have cut the network while it is still recorded.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        heard = loop.time()
        pause = FIRST_PAUSE
        while True:
            try:
                state, description = await self._status(max(0.1, deadline - loop.time()))
            except GuestError as error:
                log.debug("guest.status_failed", address=self._address, error=error.log)
            else:
                if state in ENDS:
                    return Outcome(ENDS[state], description)
                # an agent that was killed comes back, and knows nothing of the analysis
                if state != "init" or not hint.is_set():
                    heard = loop.time()
            now = loop.time()
            silent = now - heard
            if now >= deadline or (hint.is_set() and silent > LOST_AFTER):
                if silent > LOST_AFTER:
                    return Outcome("lost", f"The agent was silent for {silent:.0f} s")
                return Outcome("timeout")
            if hint.is_set():
                await asyncio.sleep(min(pause, deadline - now))
                pause = min(pause * 2, 1.0)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hint.wait(), min(STATUS_INTERVAL, deadline - now))

    async def store(self, filepath: str, content: bytes | Path) -> None:
        """Write a file in the guest; a Path is streamed."""
        part = FilePart("file", "sample.bin", content)
        await self._ask("POST", "/store", Reply, body=Multipart({"filepath": filepath}, part))

    async def extract(self, dirpath: str, archive: Path) -> None:
        """Unpack a zip into a folder of the guest."""
        part = FilePart("zipfile", "analyzer.zip", archive)
        await self._ask("POST", "/extract", Reply, body=Multipart({"dirpath": dirpath}, part))

    async def execute(self, command: str) -> tuple[str, str]:
        """Run a command line in the guest to its end. Returns its standard output and error."""
        form = {"command": command, "shell": "yes"}
        done = await self._ask("POST", "/execute", _Executed, form=form)
        return done.stdout, done.stderr

    async def order(self, command: str) -> None:
        """Start a command line in the guest, and do not wait for it."""
        form = {"command": command, "shell": "yes", "async": "yes"}
        await self._ask("POST", "/execute", Reply, form=form)

    async def make_executable(self, filepath: str) -> None:
        """Let a file of a Unix guest be run."""
        await self.execute(f"chmod 755 -- {shlex.quote(filepath)}")

    async def mark(self, status: str) -> None:
        """Give the agent a status, before an analysis; it is lost when the guest restarts."""
        await self._ask("POST", "/status", Reply, form={"status": status})

    async def forgets(self, timeout: float, marked: str) -> bool:
        """Whether, within ``timeout`` s, the agent falls silent or does not know the mark."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (left := deadline - loop.time()) > 0:
            try:
                if (await self._status(left))[0] != marked:
                    return True
            except GuestError:
                return True
            await asyncio.sleep(min(LONGEST_PAUSE, left))
        return False

    async def wait_restarted(self, timeout: float, marked: str) -> AgentInfo:
        """Return once an agent answers that does not know the mark. Raises AgentUnreachable.

        Until the reset takes effect, the agent of before may answer still.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            info = await self.wait_ready(deadline - loop.time())
            with contextlib.suppress(GuestError):  # it went down between the two questions
                if (await self._status(STATUS_TIMEOUT))[0] != marked:
                    return info
            await asyncio.sleep(LONGEST_PAUSE)

    def _is_installed(self, analyzer: Path) -> bool:
        """Whether the image came with the very analyzer: nothing to unpack, and it is waiting."""
        installed = self._info.analyzer
        return (
            installed is not None
            and installed.digest == digest_of(analyzer)
            and "analysis" in self._info.features
        )

    async def _start_installed(self, job: GuestJob) -> None:
        fields = {"conf": job.conf()}
        if job.sample is None:
            await self._ask("POST", "/analysis", Reply, form=fields)
            return
        fields["filepath"] = f"{self._info.temporary}/{job.file_name}"
        part = FilePart("file", "sample.bin", job.sample)
        await self._ask("POST", "/analysis", Reply, body=Multipart(fields, part))

    async def _upload_analyzer(self, archive: Path) -> _Places:
        environ = (await self._ask("GET", "/environ", _Environ)).environ
        root, temporary, separator = _roots(environ)
        made = await self._ask("POST", "/mkdtemp", _Folder, form={"dirpath": root})
        await self.extract(made.dirpath, archive)
        return _Places(made.dirpath, temporary, separator)

    async def _run_analyzer(self, places: _Places) -> None:
        script = places.path("analyzer.py")
        form = {"async": "yes", "cwd": places.analyzer}
        # an agent that does not tell its features is an old one, which knows this
        if "execpy" in self._info.features or not self._info.features:
            await self._ask("POST", "/execpy", Reply, form={**form, "filepath": script})
            return
        python = "python" if places.separator == "\\" else "python3"
        await self._ask("POST", "/execute", Reply, form={**form, "command": f"{python} {script}"})

    async def _pin(self) -> None:
        """Ask the agent to serve this host only."""
        if self._info.features and "pinning" not in self._info.features:
            return
        try:
            await self._ask("GET", "/pinning", Reply)
        except AgentRefused as error:
            # pinned before the snapshot was taken: to this host, or it would not answer at all
            log.warning("guest.already_pinned", address=self._address, error=str(error))

    async def _status(self, timeout: float) -> tuple[str, str]:
        """The agent's word for the state of the analysis, and its description."""
        limits = aiohttp.ClientTimeout(total=min(STATUS_TIMEOUT, timeout))
        reply = await self._ask("GET", "/status", _Status, limits=limits)
        return reply.status, (reply.description or "")[:4000]


def _roots(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """Where the analyzer and the sample go, and the separator: as the guest's system has it."""
    drive = environ.get("SYSTEMDRIVE") or environ.get("SystemDrive")
    if drive:
        return f"{drive}\\", environ.get("TEMP") or f"{drive}\\Windows\\Temp", "\\"
    temporary = environ.get("TMPDIR", "/tmp").rstrip("/")  # noqa: S108  # the guest's, not ours
    return temporary or "/", temporary, "/"
