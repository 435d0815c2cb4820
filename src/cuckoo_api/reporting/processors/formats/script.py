"""What a script is written in, and what in it is worth a look before it is read."""

from __future__ import annotations

import re
from typing import Any

from cuckoo_api.reporting.bounds import clip, printable
from cuckoo_api.reporting.processors.formats.words import entropy

MAX_SCRIPT = 4 << 20
"""Bytes of a script that are looked into."""

_SHEBANG = re.compile(rb"#![ \t]*([^\s]+)[ \t]*([^\r\n]*)")
_BY_INTERPRETER = (
    (re.compile(r"(?:ba|da|a|k|z|c|tc|fi)?sh\d*|busybox"), "shell"),
    (re.compile(r"pypy\d?|python[\d.]*"), "python"),
    (re.compile(r"perl[\d.]*"), "perl"),
    (re.compile(r"ruby[\d.]*"), "ruby"),
    (re.compile(r"php[\d.]*"), "php"),
    (re.compile(r"node(?:js)?|deno|bun"), "javascript"),
    (re.compile(r"pwsh"), "powershell"),
    (re.compile(r"lua[\d.]*"), "lua"),
    (re.compile(r"[gmn]?awk"), "awk"),
)
_BY_EXTENSION = {
    "bash": "shell", "sh": "shell",
    "bat": "batch", "cmd": "batch",
    "hta": "hta", "htm": "html", "html": "html", "svg": "svg",
    "js": "javascript", "jse": "javascript", "wsf": "wsf", "wsc": "wsf", "sct": "wsf",
    "lua": "lua", "php": "php", "pl": "perl", "py": "python", "rb": "ruby",
    "ps1": "powershell", "psm1": "powershell", "psd1": "powershell",
    "vba": "vba", "vbe": "vbscript", "vbs": "vbscript",
}  # fmt: skip

NOTABLE = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "evaluates_text": r"\beval\b|\bexec\s*\(|\bInvoke-Expression\b|\biex\b|\bExecuteGlobal\b",
        "decodes_base64": r"base64\s+(?:-d|--decode|-D)\b|b64decode|FromBase64String|\batob\s*\("
        r"|decode_base64|base64_decode",
        "builds_text_from_numbers": r"fromCharCode|\bchrw?\s*\(|\[char\]|\\x[0-9a-f]{2}\\x",
        "downloads": r"\b(?:curl|wget|Invoke-WebRequest|iwr|bitsadmin|certutil)\b|DownloadString"
        r"|DownloadFile|urlopen|urlretrieve|XMLHTTP|requests\.get",
        "opens_connections": r"/dev/(?:tcp|udp)/|\bsocket\.|\bTCPClient\b|\bnc(?:at)?\s+-"
        r"|\bsocat\b",
        "starts_programs": r"subprocess|os\.(?:system|popen)|\bsystem\s*\(|WScript\.Shell"
        r"|Start-Process|child_process|shell_exec|\bpassthru\s*\(",
        "runs_encoded_powershell": r"powershell[^\r\n]{0,200}\s-e(?:nc|ncodedcommand)?\s",
        "makes_executable": r"\bchmod\s+(?:\S*\+x|[0-7]*[1357]\d*)",
        "changes_persistence": r"\bcrontab\b|/etc/cron|systemctl\s+enable|\.bashrc|\.profile"
        r"|ld\.so\.preload|authorized_keys|CurrentVersion\\+Run|schtasks",
    }.items()
}
_ENCODED = re.compile(r"[A-Za-z0-9+/]{120,}={0,2}")


def language_of(head: bytes, name: str) -> str | None:
    """What a file that begins so is written in; None where it is no script."""
    if not is_text(head):
        return None
    if match := _SHEBANG.match(head):
        return _by_interpreter(*_shebang(match))
    return _BY_EXTENSION.get(name.rpartition(".")[2].lower())


def is_text(head: bytes) -> bool:
    """Whether there is no zero byte, or it is UTF-16 with its mark."""
    return bool(head) and (b"\0" not in head or head[:2] in (b"\xff\xfe", b"\xfe\xff"))


def describe_script(data: bytes, language: str) -> dict[str, Any]:
    """The report's ``static.script``."""
    match = _SHEBANG.match(data)
    interpreter, arguments = _shebang(match) if match else ("", "")
    lines = _decoded(data).splitlines()
    source = "\n".join(lines)
    found = {name: sum(1 for _ in pattern.finditer(source)) for name, pattern in NOTABLE.items()}
    return {
        "language": language,
        "interpreter": interpreter,
        "arguments": arguments,
        "lines": len(lines),
        "longest_line": max(map(len, lines), default=0),
        "entropy": entropy(data),
        "encoded_blocks": sum(1 for _ in _ENCODED.finditer(source)),
        "notable": {name: count for name, count in found.items() if count},
    }


def _decoded(data: bytes) -> str:
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if wide else "utf-8", "replace")


def _shebang(match: re.Match[bytes]) -> tuple[str, str]:
    return clip(printable(match[1]), 256), clip(printable(match[2]), 256).strip()


def _by_interpreter(interpreter: str, arguments: str) -> str:
    """The language; the interpreter's own name where it is not known."""
    name = interpreter.rpartition("/")[2]
    if name == "env":
        words = [word for word in arguments.split() if word[0] != "-" and "=" not in word]
        name = words[0].rpartition("/")[2] if words else name
    return next((language for form, language in _BY_INTERPRETER if form.fullmatch(name)), name)
