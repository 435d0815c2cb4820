"""What the calls of Windows programs mean: which of them belong into the summary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cuckoo_api.reporting.processors.trace.activity import Activity, Process

MAX_HANDLES = 10_000

FILE = ("filepath", "FileName", "filepath_r")
FOLDER = ("dirpath", "DirectoryName", "FileName")
KEY = ("regkey", "FullName", "ObjectAttributes")
OLD = ("oldfilepath", "ExistingFileName")
NEW = ("newfilepath", "NewFileName")
HANDLE = ("file_handle", "FileHandle")
NAME = ("hostname", "NodeName", "Name", "ServerName")

SIMPLE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "CreateDirectory": ("directory_created", FOLDER),
    "RemoveDirectory": ("directory_removed", FOLDER),
    "FindFirstFile": ("directory_enumerated", FILE),
    **dict.fromkeys(("DeleteFile", "NtDeleteFile"), ("file_deleted", FILE)),
    "GetFileAttributes": ("file_exists", FILE),
    "LdrLoadDll": ("dll_loaded", ("module_name", "FileName")),
    "NtLoadDriver": ("module_loaded", ("driver_service_name", "DriverServiceName")),
    **dict.fromkeys(
        ("RegOpenKey", "RegCreateKey", "NtOpenKey", "NtCreateKey"), ("regkey_opened", KEY)
    ),
    **dict.fromkeys(
        ("RegDeleteKey", "RegDeleteValue", "NtDeleteKey", "NtDeleteValueKey"),
        ("regkey_deleted", KEY),
    ),
    **dict.fromkeys(("RegQueryValue", "NtQueryValueKey"), ("regkey_read", KEY)),
    **dict.fromkeys(("RegSetValue", "NtSetValueKey"), ("regkey_written", KEY)),
    **dict.fromkeys(
        ("NtCreateMutant", "NtOpenMutant"), ("mutex", ("mutant_name", "MutexName"))
    ),
    **dict.fromkeys(
        ("DnsQuery", "DnsQuery_UTF8", "getaddrinfo", "GetAddrInfo", "gethostbyname"),
        ("resolves_host", NAME),
    ),
    "InternetConnect": ("connects_host", NAME),
    "InternetOpenUrl": ("fetches_url", ("url", "URL", "URLName")),
    "URLDownloadToFile": ("downloads_file", ("url", "URL")),
    "system": ("command_line", ("command", "Command")),
    **dict.fromkeys(
        ("IWbemServices_ExecQuery", "IWbemServices_ExecQueryAsync"),
        ("wmi_query", ("query", "Query")),
    ),
}  # fmt: skip
"""A call's name without its variant, the category, and the names its argument may have."""

TRIED = frozenset({"connects_host", "fetches_url", "resolves_host"})
"""Categories that a call belongs to also when it failed."""

_VARIANT = re.compile(r"(?<=[a-z])(?:Ex)?_?[AW]?$")
_PROGRAM = re.compile(r'"([^"]*)"|([^ ]*)')
_MADE = re.compile(r"(?i)(?:file_)?created")


class WindowsInterpreter:
    """Puts the calls of one process into the summary."""

    def __init__(self, activity: Activity, process: Process) -> None:
        self._activity = activity
        self._process = process
        self._files: dict[Any, str] = {}

    def take(
        self, api: str, arguments: Mapping[str, Any], flags: Mapping[str, str], *, succeeded: bool
    ) -> None:
        """Take a call; its arguments may be of any shape."""
        name = _VARIANT.sub("", api)
        if name in SIMPLE:
            category, names = SIMPLE[name]
            if succeeded or category in TRIED:
                self._add(category, _text(arguments, names))
            if name == "URLDownloadToFile" and succeeded:
                self._add("file_written", _text(arguments, FILE))
        elif name in ("NtCreateFile", "NtOpenFile"):
            self._opened(arguments, flags, succeeded=succeeded)
        elif name in ("NtReadFile", "NtWriteFile") and succeeded:
            path = self._files.get(_first(arguments, HANDLE), "")
            self._add("file_read" if name == "NtReadFile" else "file_written", path)
        elif name == "NtClose":
            self._files.pop(_first(arguments, ("handle", "Handle")), None)
        elif name in ("MoveFileWithProgress", "CopyFile") and succeeded:
            kind = "file_copied" if name == "CopyFile" else "file_moved"
            self._add(kind, _text(arguments, OLD), _text(arguments, NEW))
        elif name in ("connect", "Connect", "WSAConnect"):
            self._connects(arguments)
        elif name in ("CreateProcessInternal", "ShellExecute") and succeeded:
            self._starts(arguments)

    def _add(self, category: str, *values: str) -> None:
        if all(values):
            self._activity.add(self._process, category, *values)

    def _opened(
        self, arguments: Mapping[str, Any], flags: Mapping[str, str], *, succeeded: bool
    ) -> None:
        path = _text(arguments, FILE)
        handle = _first(arguments, HANDLE)
        if not succeeded:
            self._add("file_failed", path)
            return
        if isinstance(handle, int | str) and len(self._files) < MAX_HANDLES:
            self._files[handle] = path
        made = _MADE.fullmatch(flags.get("status_info", "")) or (
            str(arguments.get("ExistedBefore", "")).lower() == "no"
        )
        self._add("file_created" if made else "file_opened", path)

    def _connects(self, arguments: Mapping[str, Any]) -> None:
        address = _text(arguments, ("ip_address", "ip"))
        port = arguments.get("port")
        self._add("connects_ip", address)
        if address and isinstance(port, int):
            shown = f"[{address}]" if ":" in address else address
            self._add("connects_host", f"{shown}:{port}")

    def _starts(self, arguments: Mapping[str, Any]) -> None:
        path = _text(arguments, ("filepath", "ApplicationName", "FilePath"))
        words = _text(arguments, ("parameters", "Parameters"))
        line = _text(arguments, ("command_line", "CommandLine"))
        self._add("command_line", line or " ".join(filter(None, (path, words))))
        quoted = _PROGRAM.match(line)
        program = path or (quoted[1] or quoted[2] if quoted is not None else "")
        if self._activity.knows("file_written", program):
            self._add("dropped_executed", program)


def _first(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    value = next((arguments[name] for name in names if name in arguments), None)
    return value if isinstance(value, int | str) else None


def _text(arguments: Mapping[str, Any], names: tuple[str, ...]) -> str:
    value = _first(arguments, names)
    return value if isinstance(value, str) else ""
