"""Just enough HTTP for a sinkhole: whatever is asked for is there. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

PAGE = b"<!DOCTYPE html>\n<html><head><title>OK</title></head><body><p>OK</p></body></html>\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MAX_DIGITS = 18
_PAGES = frozenset({"", "html", "htm", "php", "asp", "aspx", "jsp", "cgi", "do"})
"""Suffixes of what a browser would show; any other is a download."""


@dataclass(frozen=True, slots=True)
class Request:
    """What of a request matters here."""

    method: str
    suffix: str
    """Of the path, lower case, without the dot."""
    length: int
    """Bytes of the body, as far as the request says so."""
    waits: bool
    """The client sends its body when it is told to go on."""


def parse_head(lines: list[bytes]) -> Request:
    """The request of these lines. Nothing is wrong: a sample may speak HTTP of its own."""
    method, _, rest = lines[0].decode("latin-1").strip().partition(" ")
    path = rest.partition(" ")[0].partition("?")[0].partition("#")[0]
    name = path.rpartition("/")[2]
    suffix = name.rpartition(".")[2] if "." in name else ""
    length, waits = 0, False
    for line in lines[1:]:
        key, _, value = (part.strip().lower() for part in line.partition(b":"))
        if key == b"content-length" and value.isdigit() and len(value) <= MAX_DIGITS:
            length = int(value)
        elif key == b"expect":
            waits = value == b"100-continue"
    return Request(method, suffix.lower(), length, waits)


def respond(request: Request) -> bytes:
    """The one page that there is, as what the path looks like."""
    kind = b"text/html" if request.suffix in _PAGES else b"application/octet-stream"
    head = (
        b"HTTP/1.1 200 OK\r\nServer: httpd\r\nContent-Type: %s\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (kind, len(PAGE))
    )
    return head if request.method == "HEAD" else head + PAGE
