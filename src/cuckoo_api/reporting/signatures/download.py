"""Files that a sample fetches."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import (
    Facts,
    Mark,
    Signature,
    basename,
    mark,
    words_of,
)

_TOOLS = frozenset({"wget", "curl", "aria2c", "axel", "lynx", "ftpget", "tftp", "fetch"})
_URL = re.compile(r"(?:https?|ftps?|tftp)://\S+")


class NetworkDownload(Signature):
    name = "network_download"
    description = "Downloads a file"
    severity = 2
    ttp = ("T1105",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        # of a URL that was submitted, the fetching is the analyzer's own work
        own = facts.target if facts.category == "url" else None
        for seen in facts.seen("command_line"):
            if _downloads(seen.path) and not (own and own in seen.path):
                yield mark("cmdline", seen.path, seen)
        written = {file.size: file.filepath for file in facts.dropped if file.size}
        for request in facts.network.http:
            path = written.get(int(request.get("response_size") or 0))
            uri = str(request.get("uri", ""))
            fetched = request.get("method") == "GET" and request.get("status") in (200, 206)
            if fetched and path and uri != own:
                yield mark("request", f"{uri} -> {path}")


def _downloads(line: str) -> bool:
    first = basename(line.partition(" ")[0])
    if first != "busybox" and first not in _TOOLS:
        return False  # to take a line apart with its quotations takes long
    words = words_of(line)
    if words and basename(words[0]) == "busybox":
        words = words[1:]
    if not words or basename(words[0]) not in _TOOLS:
        return False
    return any(_URL.match(word) or "." in word for word in words[1:] if not word.startswith("-"))
