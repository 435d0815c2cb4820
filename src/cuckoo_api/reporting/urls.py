"""Addresses in the bytes of a file, as ASCII or UTF-16, while it is read piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_URLS = 200
MAX_LENGTH = 1_024

_SCHEME = re.compile(rb"(?<![a-zA-Z0-9])(?i:https?|ftps?|sftp|tftp|wss?)\Z")
_REST = re.compile(
    rb"(?:[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9])?|\[[0-9a-fA-F:.]{2,45}\])"
    rb"(?::[0-9]{1,5})?(?:[/?#][a-zA-Z0-9_.~:/?#\[\]@!$&'()*+,;=%-]{0,900})?"
)
_MARK, _WIDE_MARK = b"://", b":\0/\0/\0"
_BEFORE = 12
"""Bytes before a mark that hold any scheme, and what must not stand before that."""
_TRAILING = b".,;:!?'"
"""What ends a sentence or a quotation around an address, and hardly ever an address."""


class UrlFinder:
    """Takes a file's pieces in order; keeps the first addresses, each once."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._rest = b""
        self._done = 0
        """How much of the rest was searched; it is kept for the schemes before the marks."""

    @property
    def urls(self) -> list[str]:
        """What was found, in the file's order; complete after :meth:`finish`."""
        return list(self._found)

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        if len(self._found) >= MAX_URLS:
            return
        data = self._rest + chunk
        # an address that begins after this may go on in the next piece
        border = max(self._done, len(data) - 2 * MAX_LENGTH)
        self._search(data, border)
        start = max(0, border - _BEFORE)
        self._rest, self._done = data[start:], border - start

    def finish(self) -> None:
        """There are no more pieces."""
        self._search(self._rest, len(self._rest))
        self._rest = b""

    def _search(self, data: bytes, border: int) -> None:
        for find in (_narrow, _wide):
            for url in find(data, self._done, border):
                if len(self._found) < MAX_URLS:
                    self._found[url.decode("ascii")] = None


def _narrow(data: bytes, start: int, border: int) -> Iterator[bytes]:
    # the mark is looked for, and not the scheme: a search for fixed bytes is many times faster
    for place in _places(data, _MARK, start, border):
        before = data[max(0, place - _BEFORE) : place]
        yield from _whole(before, data[place : place + MAX_LENGTH])


def _wide(data: bytes, start: int, border: int) -> Iterator[bytes]:
    for place in _places(data, _WIDE_MARK, start, border):
        before = data[max(0, place - _BEFORE) : place]
        window = data[place : place + 2 * MAX_LENGTH]
        # up to the first character that is not ASCII
        end = next((n for n in range(1, len(window), 2) if window[n]), len(window))
        yield from _whole(before[len(before) % 2 :: 2], window[:end:2])


def _places(data: bytes, mark: bytes, start: int, border: int) -> Iterator[int]:
    place = data.find(mark, start)
    while 0 <= place < border:
        yield place
        place = data.find(mark, place + len(mark))


def _whole(before: bytes, rest: bytes) -> Iterator[bytes]:
    scheme = _SCHEME.search(before)
    if scheme is not None and (match := _REST.match(rest, len(_MARK))):
        place = match[0].rstrip(_TRAILING)
        yield scheme[0].lower() + _MARK + (place if b"(" in place else place.rstrip(b")"))
