"""Which files out of an archive are worth running, by libmagic's words for them."""

from __future__ import annotations

import re

SCRIPTS = frozenset(
    {
        "bat", "cmd", "hta", "htm", "html", "js", "jse", "pl", "ps1", "psm1", "py", "rb", "scf",
        "sct", "sh", "svg", "url", "vbe", "vbs", "wsc", "wsf", "xml",
    }
)  # fmt: skip
"""Extensions by which a guest runs a file that is text."""

_DULL = re.compile(
    r"""
      empty$ | very\ short\ file
    | [^,]*\btext\b(?!\ executable)          # "ASCII text", "Unicode text, UTF-8 text"
    | C(?:\+\+)?\ source | JSON | CSV
    | [^,]*\bimage\ data\b | [^,]*\bbitmap\b | PC\ bitmap | Adobe\ Photoshop\ Image
    | MS\ Windows\ (?:icon|cursor)\ resource
    | RIFF\ .*?\b(?:AVI|WAVE|Web/P)\b | Audio\ file | MPEG\ | Ogg\ | FLAC\ | Matroska | WebM
    | ISO\ Media | Apple\ QuickTime | Microsoft\ ASF
    | (?:TrueType|OpenType)\ | Web\ Open\ Font
    """,
    re.VERBOSE,
)


def is_worth_running(name: str, file_type: str, size: int) -> bool:
    """Whether a member of an archive becomes a task.

    Not so what is empty, plain text, source code, a picture, sound, a film or a font, unless its
    name has an extension by which text is run.
    """
    if not size:
        return False
    return name.rpartition(".")[2].lower() in SCRIPTS or not _DULL.match(file_type)
