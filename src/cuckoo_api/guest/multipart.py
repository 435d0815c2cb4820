"""A multipart form with one file, streamed, with a length known in advance.

Agents parse with Python's old ``cgi`` module, which knows no chunked bodies; aiohttp's own form
writer adds part headers that some of them stumble over.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cuckoo_api.guest.errors import GuestError

CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class FilePart:
    """The file of a form: its field, the name it is sent under, and bytes or a path."""

    field: str
    name: str
    content: bytes | Path


class Multipart:
    """The form. Entering opens the file, so that ``headers`` can tell the length."""

    def __init__(self, fields: Mapping[str, str], part: FilePart) -> None:
        boundary = secrets.token_hex(16)
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        head += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part.field}"; '
            f'filename="{part.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        self._head = head.encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._type = f"multipart/form-data; boundary={boundary}"
        self._content = part.content
        self._file: BinaryIO | None = None
        self._file_size = 0

    async def __aenter__(self) -> Self:
        if isinstance(self._content, bytes):
            self._file_size = len(self._content)
            return self
        self._file = await asyncio.to_thread(self._content.open, "rb")
        self._file_size = os.fstat(self._file.fileno()).st_size
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return len(self._head) + self._file_size + len(self._tail)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self._type, "Content-Length": str(self.size)}

    async def stream(self) -> AsyncIterator[bytes]:
        """The body: in one piece when small, so that it is one packet train and one wake-up."""
        if isinstance(self._content, bytes):
            yield self._head + self._content + self._tail
            return
        if self._file is None:
            raise RuntimeError("Multipart is an async context manager")
        pending = self._head
        left = self._file_size
        while left:
            data = await asyncio.to_thread(self._file.read, min(CHUNK, left))
            if not data:
                raise GuestError(f"{self._content} became shorter while it was sent")
            left -= len(data)
            if left:
                yield pending + data
                pending = b""
            else:
                pending += data
        yield pending + self._tail
