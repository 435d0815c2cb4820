"""One request to an agent, and its answer. Whatever answers there may be in the sample's hands."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from cuckoo_api.guest.errors import AgentRefused, AgentUnreachable, BadAnswer
from cuckoo_api.guest.multipart import Multipart

ANSWER_LIMIT = 1 << 20
"""Bytes of one answer; more is a BadAnswer."""
REQUEST_TIMEOUT = 30.0
SLOWEST = 1 << 20
"""Bytes a second that an upload must reach, on top of REQUEST_TIMEOUT."""

_T = TypeVar("_T")


class Reply(msgspec.Struct):
    """What an agent answers when there is nothing to tell."""

    message: str = ""


class AgentSession:
    """The agent at ``host:port`` or ``unix:/path``. Use as an async context manager."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._address.startswith("unix:"):
            base = "http://agent"
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(self._address[5:], limit=4)
        else:
            base = f"http://{self._address}"
            connector = aiohttp.TCPConnector(limit=4, use_dns_cache=False)
        self._session = aiohttp.ClientSession(
            base,
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(
        self,
        method: str,
        path: str,
        answer: type[_T],
        *,
        form: Mapping[str, str] | None = None,
        body: Multipart | None = None,
        limits: aiohttp.ClientTimeout | None = None,
    ) -> _T:
        """One exchange. Raises AgentUnreachable, AgentRefused or BadAnswer."""
        if self._session is None:
            raise RuntimeError("AgentSession is an async context manager")
        where = f"{method} {path} at {self._address}"
        try:
            async with (
                _data(form, body) as (data, headers, size),
                self._session.request(
                    method,
                    path,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    timeout=limits or aiohttp.ClientTimeout(REQUEST_TIMEOUT + size / SLOWEST),
                ) as response,
            ):
                status = response.status
                content = await _read(response)
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise AgentUnreachable(
                f"The agent does not answer {where}", log=f"{where}: {error!r}"
            ) from error
        except ValueError as error:
            # aiohttp's own parsers raise it for some malformed headers
            raise BadAnswer(
                f"The agent's answer to {where} is malformed", log=repr(error)
            ) from error
        return _decode(where, status, content, answer)


@contextlib.asynccontextmanager
async def _data(
    form: Mapping[str, str] | None, body: Multipart | None
) -> AsyncIterator[tuple[object, Mapping[str, str], int]]:
    """The body of a request, its headers and its size."""
    if body is None:
        yield (aiohttp.FormData(dict(form)) if form else None), {}, 0
        return
    async with body:
        yield body.stream(), body.headers, body.size


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        content += piece
        if len(content) > ANSWER_LIMIT:
            response.close()
            raise BadAnswer(f"The agent's answer exceeds {ANSWER_LIMIT} bytes")
    return bytes(content)


def _decode(where: str, status: int, content: bytes, answer: type[_T]) -> _T:
    try:
        if status != 200:
            reply = msgspec.json.decode(content, type=Reply)
            raise AgentRefused(f"The agent refused {where}: {reply.message[:500]}", status)
        return msgspec.json.decode(content, type=answer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if status != 200:
            raise AgentRefused(f"The agent refused {where} with status {status}", status) from error
        raise BadAnswer(
            f"The agent's answer to {where} is not as its protocol says", log=f"{where}: {error}"
        ) from error
