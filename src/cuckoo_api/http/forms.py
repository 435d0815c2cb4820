"""Forms, urlencoded and multipart. Files stream into uploads; everything else is bounded."""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from cuckoo_api.artefacts import Upload
from cuckoo_api.model.errors import BadInput, TooLarge

CHUNK = 32 << 10
PIECE = 68 << 10
"""Bytes of a multipart body that are parsed at once: a small upload comes in one piece."""
MAX_FIELDS = 1000
"""Parts of one form, files among them."""
MAX_FIELD_BYTES = 1 << 20
"""All fields of one form together, names included."""
MAX_FILES = 32
"""Uploads that one request may hold open."""
MAX_HEADER = 8 << 10
"""Bytes of one header line of a part."""
MAX_HEADERS = 32
"""Header lines of one part."""

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


class _FieldPart:
    """A field on its way in."""

    def __init__(self, form: Form, name: str, charset: str) -> None:
        self._form = form
        self._name = name
        self._charset = charset
        self._value = bytearray()

    async def write(self, data: bytes) -> None:
        self._form.count(0, len(data))
        self._value += data

    def end(self) -> None:
        self._form.add(self._name, bytes(self._value), self._charset)


class _FilePart:
    """A file on its way into an upload."""

    def __init__(self, form: Form, filename: str, upload: Upload) -> None:
        self._form = form
        self._filename = filename
        self._upload = upload

    async def write(self, data: bytes) -> None:
        await self._upload.write(data)

    def end(self) -> None:
        # what a browser sends where no file was chosen has neither name nor content
        if self._filename or self._upload.size:
            self._form.files.append(FormFile(self._filename, self._upload))


class _Base64Part:
    """A part whose bytes come in base64."""

    def __init__(self, part: _FieldPart | _FilePart) -> None:
        self._part = part
        self._rest = b""

    async def write(self, data: bytes) -> None:
        text = self._rest + bytes(data).translate(None, b" \t\r\n")
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        with malformed(MULTIPART):
            await self._part.write(base64.b64decode(text[:whole], validate=True))

    def end(self) -> None:
        if self._rest:
            raise BadInput(f"The body is no valid {MULTIPART}: base64 that ends early")
        self._part.end()


async def _read_multipart(
    request: web.Request, new_upload: NewUpload | None, file_fields: Collection[str]
) -> Form:
    form = Form()
    part: _FieldPart | _FilePart | _Base64Part | None = None
    async for event in _events(request):
        if isinstance(event, MultipartSegment):
            disposition = event.header(hdrs.CONTENT_DISPOSITION, "").encode("latin-1")
            name, filename = parse_disposition(disposition.decode("utf-8", "replace"))
            if b"\0" in disposition:
                raise BadInput("A name in the form has a NUL in it")
            if not name:
                raise BadInput(
                    "A part of the form has no name; expected name=… in Content-Disposition"
                )
            form.count(1, len(name))
            if new_upload is not None and name in file_fields and filename is not None:
                part = _FilePart(form, filename, await _next_upload(form, new_upload))
            else:
                part = _FieldPart(form, name, event.charset or "utf-8")
            if _is_base64(event):
                part = _Base64Part(part)
        elif part is not None and event is not None:
            await part.write(event)
        elif part is not None:
            part.end()
    return form


async def _events(request: web.Request) -> AsyncIterator[MultipartSegment | bytes | None]:
    """The parts of a body as they come: a head, its bytes, None at its end."""
    with malformed(MULTIPART):
        _, options = parse_options_header(request.headers[hdrs.CONTENT_TYPE])
        parser = PushMultipartParser(
            options.get("boundary", ""),
            max_header_size=MAX_HEADER,
            max_header_count=MAX_HEADERS,
            header_charset="latin-1",  # takes every byte; clients mean UTF-8
        )
        outside = 0
        while not parser.closed:
            chunk = await request.content.read(PIECE)
            outside += len(chunk)
            for event in parser.parse(chunk):
                outside = 0
                yield event
            if outside > CHUNK:
                raise BadInput(
                    f"The body is no valid {MULTIPART}: more than {CHUNK} bytes are in no part"
                )


async def _next_upload(form: Form, new_upload: NewUpload) -> Upload:
    if len(form.files) == MAX_FILES:
        raise BadInput(f"file: at most {MAX_FILES} files in one request")
    if form.files:
        await form.files[-1].upload.flush()  # of all small files together one is in memory
    return await new_upload()


def _is_base64(segment: MultipartSegment) -> bool:
    encoding: str = segment.header(hdrs.CONTENT_TRANSFER_ENCODING, "binary").lower()
    if encoding not in ("binary", "8bit", "7bit", "base64"):
        raise BadInput(
            f"Content-Transfer-Encoding: expected binary or base64; got {encoding!r:.80}"
        )
    return encoding == "base64"


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
    return found.get("name"), found.get("filename")


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


# -- both ---------------------------------------------------------------------------------------


@contextmanager
def malformed(what: str) -> Iterator[None]:
    """Whatever the parsers raise for a body that is not what it says."""
    try:
        yield
    except (ValueError, MultipartError, web.RequestPayloadError) as exc:
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
