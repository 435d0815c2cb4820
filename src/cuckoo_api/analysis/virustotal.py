"""Files from VirusTotal by their hash, through version 3 of its API."""

from __future__ import annotations

import aiohttp
import msgspec
from aiohttp import hdrs
from yarl import URL

from cuckoo_api.artefacts import Upload
from cuckoo_api.model.errors import Unavailable
from cuckoo_api.settings import VirusTotalSection

CHUNK = 256 << 10
MAX_REDIRECTS = 3
MAX_ERROR = 64 << 10
"""Bytes of an answer that is no file."""
REASONS = {
    401: "it does not accept the key of [virustotal]",
    403: "the key of [virustotal] has no right to download files",
    404: "it does not have that file",
    429: "the quota of the key of [virustotal] is used up",
}


class NotFetched(Unavailable):
    """The file did not come; the text says why."""


class _Error(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


class VirusTotal:
    """Its API, with the configured key."""

    def __init__(self, section: VirusTotalSection) -> None:
        self._key = section.key
        self._base = URL(section.url)
        self._timeout = aiohttp.ClientTimeout(total=section.timeout)

    async def fetch(self, digest: str, upload: Upload) -> None:
        """Write the file into the upload. Raises NotFetched; what came is not verified yet."""
        if not self._key:
            raise NotFetched("no key is configured; set [virustotal] key in conf/cuckoo.conf")
        try:
            async with aiohttp.ClientSession(timeout=self._timeout) as session:
                await self._fetch(session, digest, upload)
        except TimeoutError as exc:
            raise NotFetched(f"it took longer than {self._timeout.total:g} s") from exc
        except (aiohttp.ClientError, ValueError) as exc:
            raise NotFetched("it cannot be reached", log=f"{type(exc).__name__}: {exc}") from exc

    async def _fetch(self, session: aiohttp.ClientSession, digest: str, upload: Upload) -> None:
        url = self._base / "api/v3/files" / digest / "download"
        headers = {"x-apikey": self._key, hdrs.ACCEPT_ENCODING: "identity"}
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status == 200:
                    async for chunk in response.content.iter_chunked(CHUNK):
                        await upload.write(chunk)
                    return
                if response.status not in (301, 302, 303, 307, 308):
                    known = REASONS.get(response.status) if "x-apikey" in headers else None
                    raise NotFetched(known or await _reason(response))
                url = url.join(URL(response.headers.get(hdrs.LOCATION, "")))
            if url.scheme not in (self._base.scheme, "https"):
                raise NotFetched("it leads to an address that is not served by HTTPS")
            headers.pop("x-apikey", None)  # the files lie elsewhere, and their address is signed
        raise NotFetched("it leads from one address to the next")


async def _reason(response: aiohttp.ClientResponse) -> str:
    try:
        said = msgspec.json.decode(await response.content.read(MAX_ERROR), type=_Answer)
    except msgspec.MsgspecError:
        said = _Answer()
    text = "".join(char if char.isprintable() else " " for char in said.error.message)
    return f"it answered {response.status}" + (f": {text:.200}" if text else "")
