"""Forms, urlencoded and multipart. Files stream into uploads; everything else is bounded."""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from cuckoo_api.artefacts import Upload
from cuckoo_api.model.errors import BadInput, TooLarge

CHUNK = 32 << 10
MAX_FIELDS = 1000
"""Parts of one form, files among them."""
MAX_FIELD_BYTES = 1 << 20
"""All fields of one form together, names included."""
MAX_FILES = 32
"""Uploads that one request may hold open."""

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

_CHARSETS = frozenset({"ascii", "cp1252", "iso8859-1", "iso8859-15", "utf-8", "utf-8-sig"})
_PARAMETER = re.compile(
    r";\s*(?P<name>[\w!#$%&+^`{}~.-]+)(?P<star>\*?)\s*=\s*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"\s*(?=;|$)|(?P<plain>[^;]*))',
    re.ASCII | re.DOTALL,
)
_EXTENDED = re.compile(r"(?P<charset>[\w.:-]+)'[^']*'(?P<text>.*)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file that arrived whole and is not kept yet."""

    name: str
    """As the client gave it; may be empty or a path."""
    upload: Upload


@dataclass(slots=True)
class Form:
    """A form that was read to its end. The first of several fields of one name counts."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[FormFile] = field(default_factory=list)
    _parts: int = 0
    _bytes: int = 0

    def count(self, part: int, size: int) -> None:
        """Note parts and bytes that came in. Raises over the limits."""
        self._parts += part
        self._bytes += size
        if self._parts > MAX_FIELDS:
            raise BadInput(f"The form has more than {MAX_FIELDS} fields")
        if self._bytes > MAX_FIELD_BYTES:
            raise TooLarge(f"The form's fields without its files exceed {MAX_FIELD_BYTES} bytes")

    def add(self, name: str, data: bytes, charset: str) -> None:
        """Take a field."""
        self.fields.setdefault(name, _decoded(name, data, charset))


NewUpload = Callable[[], Awaitable[Upload]]


async def read_form(
    request: web.Request,
    new_upload: NewUpload | None = None,
    *,
    file_fields: Collection[str] = ("file",),
) -> Form:
    """Read the whole body.

    With ``new_upload``, parts of these names that have a file name are written into uploads that
    it makes. Raises BadInput for what does not parse, TooLarge over a limit.
    """
    match request.content_type:
        case "multipart/form-data":
            return await _read_multipart(request, new_upload, file_fields)
        case "application/x-www-form-urlencoded":
            return await _read_urlencoded(request)
        case _:
            if request.can_read_body:
                raise BadInput(
                    f"Content-Type: expected {MULTIPART} or {URLENCODED}; "
                    f"got {request.content_type!r:.80}"
                )
            return Form()


# -- urlencoded -----------------------------------------------------------------------------------


async def _read_urlencoded(request: web.Request) -> Form:
    form = Form()
    body = bytearray()
    with malformed(URLENCODED):
        async for chunk in request.content.iter_chunked(CHUNK):
            form.count(0, len(chunk))
            body += chunk
        charset = _charset(request.charset or "utf-8")
        pairs = parse_qsl(
            body.rstrip().decode(charset),
            keep_blank_values=True,
            encoding=charset,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    for name, value in pairs:
        form.fields.setdefault(name, value)
    return form


# -- multipart ------------------------------------------------------------------------------------


class FormReader(MultipartReader):
    """aiohttp's reader, with file names as clients mean them: backslashes are no escapes."""

    name: str | None = None
    filename: str | None = None

    async def fetch_next_part(self) -> BodyPartReader:
        """The next part; its name and file name are then the reader's."""
        part = await super().fetch_next_part()
        if not isinstance(part, BodyPartReader):
            raise BadInput("A part of the form is a multipart body itself; expected plain parts")
        headers = CIMultiDict(part.headers)
        disposition = headers.popall(hdrs.CONTENT_DISPOSITION, [""])[0]
        self.name, self.filename = parse_disposition(disposition)
        part.headers = CIMultiDictProxy(headers)
        return part


async def _read_multipart(
    request: web.Request, new_upload: NewUpload | None, file_fields: Collection[str]
) -> Form:
    form = Form()
    with malformed(MULTIPART):
        reader = FormReader(request.headers, request.content)
    while True:
        with malformed(MULTIPART):
            part = await reader.next()
        if not isinstance(part, BodyPartReader):
            return form
        name, filename = reader.name, reader.filename
        if not name:
            raise BadInput("A part of the form has no name; expected name=… in Content-Disposition")
        form.count(1, len(name))
        if new_upload is not None and name in file_fields and filename is not None:
            await _take_file(form, part, filename, new_upload)
        else:
            await _take_field(form, part, name)


async def _take_file(
    form: Form, part: BodyPartReader, filename: str, new_upload: NewUpload
) -> None:
    if len(form.files) == MAX_FILES:
        raise BadInput(f"file: at most {MAX_FILES} files in one request")
    if form.files:
        await form.files[-1].upload.flush()  # of all small files together one is in memory
    upload = await new_upload()
    async for chunk in _content(part):
        await upload.write(chunk)
    # what a browser sends where no file was chosen has neither name nor content
    if filename or upload.size:
        form.files.append(FormFile(filename, upload))


async def _take_field(form: Form, part: BodyPartReader, name: str) -> None:
    value = bytearray()
    async for chunk in _content(part):
        form.count(0, len(chunk))
        value += chunk
    form.add(name, bytes(value), part.get_charset("utf-8"))


async def _content(part: BodyPartReader) -> AsyncIterator[bytes]:
    encoding = part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "binary").lower()
    if encoding not in ("binary", "8bit", "7bit", "base64"):
        raise BadInput(
            f"Content-Transfer-Encoding: expected binary or base64; got {encoding!r:.80}"
        )
    while not part.at_eof():
        with malformed(MULTIPART):
            chunk = await part.read_chunk(CHUNK)
            data = part.decode(chunk)
        if data:
            yield bytes(data)


def parse_disposition(header: str) -> tuple[str | None, str | None]:
    """Name and file name of a part; None where there is none."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        name = match["name"].lower()
        value = match["quoted"]
        if value is not None:
            value = re.sub(r'\\(["\\])', r"\1", value)
        else:
            value = match["plain"].strip().strip('"')
        if match["star"]:
            extended = _extended(value)
            if extended is not None:
                found[name] = extended  # says more than the plain one, wherever it stands
        else:
            found.setdefault(name, value)
    return _clean(found.get("name")), _clean(found.get("filename"))


def _extended(value: str) -> str | None:
    """The text of an RFC 5987 value."""
    match = _EXTENDED.fullmatch(value)
    if match is None:
        return None
    try:
        charset = _charset(match["charset"])
        [(_, text)] = parse_qsl(
            "x=" + match["text"].replace("+", "%2B").replace("&", "%26"),
            keep_blank_values=True,
            encoding=charset,
            errors="strict",
        )
    except ValueError:
        return None
    return text


def _clean(text: str | None) -> str | None:
    """Valid text: bytes that are no UTF-8 come out of the header parser as surrogates."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# -- both ---------------------------------------------------------------------------------------


@contextmanager
def malformed(what: str) -> Iterator[None]:
    """Whatever the parsers raise for a body that is not what it says."""
    try:
        yield
    except (ValueError, RuntimeError, HttpProcessingError, web.RequestPayloadError) as exc:
        reason = " ".join(str(exc).split())
        raise BadInput(f"The body is no valid {what}: {reason:.200}") from exc


def _charset(name: str) -> str:
    try:
        charset = codecs.lookup(name).name
    except LookupError:
        charset = ""
    if charset not in _CHARSETS:
        raise ValueError(f"charset {name!r:.40} is not accepted; send UTF-8")
    return charset


def _decoded(name: str, data: bytes, charset: str) -> str:
    try:
        return data.decode(_charset(charset))
    except ValueError as exc:
        raise BadInput(f"{name:.40}: expected UTF-8 text; {exc!s:.200}") from exc
