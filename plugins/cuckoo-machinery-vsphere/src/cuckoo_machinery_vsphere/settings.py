"""What the configuration says of the server: read, checked, all faults at once."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.machinery import BadConfig, Secret

_SHA256 = re.compile(r"(?:[0-9a-f]{2}:?){31}[0-9a-f]{2}")
_SHA1_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Server:
    """A vCenter or ESXi host, and how to log in to it."""

    host: str
    port: int
    user: str
    pwd: str = field(repr=False)
    ca_file: Path | None = None
    thumbprint: str = ""
    """SHA-256, lower case, without colons."""
    verified: bool = True
    timeout: float = 10
    """Seconds for an answer."""
    task_timeout: float = 300
    """Seconds for a task."""

    @property
    def name(self) -> str:
        """For messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def read_server(options: Mapping[str, str]) -> Server:
    """The server of section ``[vsphere]``; reads its files. BadConfig names all faults."""
    faults: list[str] = []

    def number(key: str, high: int) -> int:
        text = options[key]
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= high):
            faults.append(f"{key} = {text!r}; allowed: 1 to {high}")
            return 1
        return int(text)

    user, pwd = _credentials(options, faults)
    if not options["host"]:
        faults.append("host is empty; set it to the vCenter or ESXi host")
    server = Server(
        host=options["host"].strip("[]"),  # an IPv6 address may stand in brackets
        port=number("port", 65535),
        user=user,
        pwd=pwd,
        ca_file=Path(options["ca_file"]).expanduser() if options["ca_file"] else None,
        thumbprint=_thumbprint(options["thumbprint"].lower(), faults),
        verified=options["unverified_ssl"] != "yes",
        timeout=number("timeout", 600),
        task_timeout=number("task_timeout", 86400),
    )
    ways = [key for key in ("ca_file", "thumbprint") if options[key]]
    if not server.verified:
        ways.append("unverified_ssl = yes")
    if len(ways) > 1:
        faults.append(f"{' and '.join(ways)} are set; choose one way to check the certificate")
    if server.ca_file is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(server.ca_file)
        except OSError as exc:  # SSLError among them
            faults.append(f"ca_file = {server.ca_file} cannot be used: {exc.strerror or exc}")
    if faults:
        raise BadConfig(f"conf/vsphere.conf [vsphere]: {'; '.join(faults)}")
    return server


def _thumbprint(text: str, faults: list[str]) -> str:
    if not text or _SHA256.fullmatch(text):
        return text.replace(":", "")
    short = len(text.replace(":", "")) == _SHA1_DIGITS
    hint = "that is SHA-1, which is no proof any more; " if short else ""
    faults.append(f"thumbprint = {text!r}; {hint}allowed: the 64 hexadecimal digits of SHA-256")
    return ""


def _credentials(options: Mapping[str, str], faults: list[str]) -> tuple[str, str]:
    user, pwd = options["user"], options["pwd"]
    if options["credentials"]:
        path = Path(options["credentials"]).expanduser()
        if pwd:
            faults.append("pwd and credentials are set; the password may stand in one place only")
        try:
            if path.stat().st_mode & 0o007:
                faults.append(f"credentials = {path} may be read by everybody; chmod 600 {path}")
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            faults.append(f"credentials = {path} cannot be read: {type(exc).__name__}")
            return user, pwd
        words = dict(_pair(line) for line in lines if "=" in line)
        user, pwd = words.get("user", user), words.get("pwd", "")
    if not user or not pwd:
        faults.append(
            "user or pwd is missing; give both, here or in the file that credentials names"
        )
    return user, Secret(pwd)


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()
