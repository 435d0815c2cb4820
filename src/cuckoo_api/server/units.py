"""The systemd units of conf/systemd, for this installation."""

from __future__ import annotations

import grp
import pwd
import sys
from pathlib import Path

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings import Settings
from cuckoo_api.settings.init import default_conf

UNITS = (
    "cuckoo.target",
    "cuckoo-api.socket",
    "cuckoo-api.service",
    "cuckoo-engine.service",
    "cuckoo-rooter.service",
    "cuckoo-backup.service",
    "cuckoo-backup.timer",
)
FILES = {
    **{f"usr/local/lib/systemd/system/{name}": name for name in UNITS},
    "etc/sysusers.d/cuckoo.conf": "sysusers.d/cuckoo.conf",
    "etc/sysusers.d/cuckoo-rooter.conf": "sysusers.d/cuckoo-rooter.conf",
    "etc/tmpfiles.d/cuckoo.conf": "tmpfiles.d/cuckoo.conf",
}
"""Where each file belongs, below /. /etc/systemd/system has an operator's changes, which stay."""

PROGRAM, CWD, USER = "/opt/cuckoo/bin/cuckoo", "/var/lib/cuckoo", "cuckoo"
"""What stands in the files as they are shipped."""
HOMES = ("/home", "/root", "/run/user")


def units(settings: Settings) -> dict[str, str]:
    """The text of each file, by its path below /.

    They run the program that runs now, on the settings' working directory, as its owner. Raises
    ConfigError where systemd could not take a path.
    """
    program, cwd = Path(sys.argv[0]).absolute(), settings.cwd.absolute()
    if program.name != "cuckoo":  # python -m cuckoo_api
        program = Path(sys.executable).with_name("cuckoo")
    for path in (program, cwd):
        if not set(str(path)).isdisjoint(" \t\n\"'\\%$;"):
            raise ConfigError([f"{str(path)!r}: a path for systemd is without spaces and marks"])
    user = _owner(cwd)
    group = _name_of_group(user)
    texts = {path: default_conf(f"systemd/{name}") for path, name in FILES.items()}
    if user != USER:
        del texts["etc/sysusers.d/cuckoo.conf"]  # the account is there
    changes = {
        PROGRAM: str(program),
        CWD: str(cwd),
        f"User={USER}\n": f"User={user}\n",
        f" {USER} {USER} ": f" {user} {_group(user)} ",
        f"--group {USER}\n": f"--group {group}\n",
        f"Group={USER}\n": f"Group={group}\n",
        "ListenStream=127.0.0.1:8090\n": f"ListenStream={_address(settings)}\n",
    }
    if any(path.is_relative_to(home) for path in (program, cwd) for home in HOMES):
        changes["ProtectHome=yes"] = "ProtectHome=read-only"  # else it would not be there
    return {path: _changed(text, changes) for path, text in texts.items()}


def _changed(text: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        text = text.replace(before, after)
    return text


def _owner(cwd: Path) -> str:
    """Whose the directory is; root's, or one that is not there yet, is to be the service's own."""
    try:
        name = pwd.getpwuid(cwd.stat().st_uid).pw_name
    except (FileNotFoundError, KeyError):
        return USER
    return USER if name == "root" else name


def _group(user: str) -> str:
    """The account's group; that of an account that is to be made has its name."""
    return "-" if user != USER else USER


def _name_of_group(user: str) -> str:
    """The account's own group; that of one which is not there is to have its name."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user


def _address(settings: Settings) -> str:
    host = settings.api.host
    if host == "localhost":
        host = "127.0.0.1"
    return f"[{host}]:{settings.api.port}" if ":" in host else f"{host}:{settings.api.port}"


def write(texts: dict[str, str], folder: Path) -> list[Path]:
    """Put each file where it belongs below ``folder``; what is there is replaced."""
    written = []
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        written.append(path)
    return written
