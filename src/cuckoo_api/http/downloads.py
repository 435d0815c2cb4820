"""Files on their way out: sendfile, Range, ETag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from cuckoo_api.http.replies import JSON, Message, encode

OCTETS = "application/octet-stream"
ZIP = "application/zip"
TAR = "application/x-tar; charset=UTF-8"
JPEG = "image/jpeg"
HTML = "text/html; charset=utf-8"

_REASONS = {
    403: "The server may not read this file; see the permissions of its working directory",
    404: "File not found",
    412: "The file has changed since: a condition of the request does not hold",
    416: "The file has no such range",
}


class _JsonErrors(web.StreamResponse):
    """Stands between FileResponse and its base: a refusal becomes a JSON message."""

    _refusal = b""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self.status >= 400:
            reason = _REASONS.get(self.status, self.reason)
            self._refusal = encode(Message(reason))
            self.content_type = JSON
            self.content_length = len(self._refusal)
            if request.method == "HEAD":
                self._refusal = b""
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data or self._refusal)


class Download(web.FileResponse, _JsonErrors):
    """A file as it lies on the disk."""

    _beside = 0
    """Bytes that went from the file to the socket, and that nobody else has counted."""

    def __init__(self, path: Path, content_type: str = OCTETS) -> None:
        super().__init__(path, headers={"Content-Type": content_type})

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the file. A second call, from the framework after a handler's own, does nothing."""
        if self.prepared:
            return None
        return await super().prepare(request)

    @property
    def body_length(self) -> int:
        """Bytes that were sent, for the log."""
        return super().body_length + self._beside

    async def _sendfile(
        self, request: web.BaseRequest, fobj: IO[Any], offset: int, count: int
    ) -> AbstractStreamWriter:
        writer = await super()._sendfile(request, fobj, offset, count)
        self._beside += count
        return writer

    async def _sendfile_fallback(
        self, writer: AbstractStreamWriter, fobj: IO[Any], offset: int, count: int
    ) -> AbstractStreamWriter:
        self._beside -= count  # the writer counts them
        return await super()._sendfile_fallback(writer, fobj, offset, count)

    def _get_file_path_stat_encoding(
        self, accept_encoding: str
    ) -> tuple[Path | None, os.stat_result, str | None]:
        # never name.gz in the place of name: a guest may have put it there
        return super()._get_file_path_stat_encoding("")
