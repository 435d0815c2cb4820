"""A server that an ordinary account runs, wherever this project and its Python are installed."""

from __future__ import annotations

import json
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ENTER = """
# in a mount namespace of its own: what is closed to others has nothing but the way through in it
while [ "$1" != -- ]; do
    exec 9< "$1/$2"
    mount -t tmpfs -o mode=755 tmpfs "$1"
    mkdir "$1/$2"
    mount --no-canonicalize --bind /proc/self/fd/9 "$1/$2"
    exec 9<&-
    shift 2
done
shift
exec setpriv "$@"
"""


def as_account(name: str) -> list[str]:
    """The words before a command that leave it the account, and no capability that root has."""
    account = pwd.getpwnam(name)
    closed: dict[Path, str] = {}
    for path in (ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()):
        closed |= dict(_closed(path))
    return [
        *("unshare", "--mount", "sh", "-euc", _ENTER, "sh"),
        *(word for folder, child in closed.items() for word in (str(folder), child)),
        *("--", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"),
        *("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"),
    ]


def _closed(path: Path) -> Iterator[tuple[Path, str]]:
    for folder, child in zip(reversed(path.parents), path.parts[1:], strict=True):
        if not folder.stat().st_mode & 0o001:
            yield folder, child


def give_to(name: str, cwd: Path, like: Path) -> None:
    """Let the account have a working directory that ``new_cwd`` made, with copies of its links."""
    for link in [path for path in cwd.rglob("*") if path.is_symlink()]:
        target = link.resolve()
        link.unlink()
        shutil.copytree(target, link)
    for path in (cwd / "conf/qemu.conf", *cwd.rglob("meta.json")):
        path.write_text(path.read_text().replace(str(like), str(cwd)))
    for disk in cwd.rglob("disk.qcow2"):
        about = json.loads(_run("qemu-img", "info", "--output=json", str(disk)))
        image = about["full-backing-filename"].replace(str(like), str(cwd))
        _run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", image, str(disk))
    _run("chown", "--recursive", f"{name}:", str(cwd))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
