"""A Debian that has just been installed: systemd booted in a container, on a copy of this host.

The copy is an overlay in memory, over the host's own root. It has a network namespace of its own
without a way out, and goes with its process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePosixPath
from typing import Self

from packaging.requirements import Requirement
from serverkit import Namespace

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path("/usr/local/src/cuckoo-api-server")
PATIENCE = 60
"""Seconds for a boot."""

_PREPARE = """
set -e
mount -t tmpfs -o size=4g tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" root
# what else is installed on this host is not started
rm -f root/etc/systemd/system/*.wants/*
for unit in {units}; do ln -s /dev/null root/etc/systemd/system/$unit; done
printf '[global]\\nno-index = true\\nfind-links = /wheels\\n' > root/etc/pip.conf
# without one systemd would think that this is its first boot, and start all that is installed
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n' > root/etc/machine-id
exec systemd-nspawn --quiet --directory=root --boot --machine="$2" --register=no --keep-unit \\
    --network-namespace-path="/run/netns/$2" --capability=CAP_NET_ADMIN --resolv-conf=off \\
    --tmpfs=/root:mode=700 --timezone=off --console=pipe --bind-ro="$3":"$4" {binds}
"""
MASKED = ("systemd-logind.service", "dbus.socket", "dbus.service", "systemd-update-utmp.service")
"""Nobody logs in."""


class Host:
    """The container, with this project's source, and with wheels in place of a package index."""

    def __init__(self, folder: Path, namespace: Namespace, wheels: Path) -> None:
        self._folder = folder
        self._namespace = namespace
        self._wheels = wheels
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        self._folder.mkdir()
        script = _PREPARE.format(units=" ".join(MASKED), binds=f"--bind-ro={self._wheels}:/wheels")
        with (self._folder.parent / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
                 str(self._folder), self._namespace.name, str(ROOT), str(SOURCE)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            self._await_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._leader:
            os.kill(self._leader, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait(PATIENCE)
        for folder in _cgroups():
            for made in sorted(folder.rglob("*/"), reverse=True):  # what lies deepest comes first
                made.rmdir()
            folder.rmdir()

    @property
    def root(self) -> Path:
        """Its files, as they are seen in it."""
        return Path(f"/proc/{self._leader}/root")

    @property
    def inside(self) -> list[str]:
        """The words that run a command in it."""
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        return ["nsenter", f"--target={self._leader}", *spaces]

    def run(self, *command: str, check: bool = True) -> str:
        """A command's output; all of it when it fails."""
        done = subprocess.run(
            [*self.inside, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def _await_boot(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._leader or not (self.root / "run/systemd/private").exists():
            assert self._process is not None
            assert self._process.poll() is None, self.boot_log
            assert time.monotonic() < deadline, self.boot_log
            time.sleep(0.05)
            self._leader = _child(self._process.pid)
        while (
            state := self.run("systemctl", "is-system-running", check=False).strip()
        ) != "running":
            assert state in ("", "initializing", "starting"), (state, self.boot_log)
            assert time.monotonic() < deadline, self.boot_log
            time.sleep(0.05)

        self.run("chmod", "666", "/dev/net/tun")  # as udev does where there is one

    @property
    def boot_log(self) -> str:
        """What it said while it booted."""
        return (self._folder.parent / "boot.log").read_text(errors="replace")[-3000:]


def _child(pid: int) -> int:
    """nspawn's own, which is the container's first process; 0 where there is none yet."""
    path = Path(f"/proc/{pid}")
    try:
        if (path / "comm").read_text() != "systemd-nspawn\n":
            return 0
        children = (path / "task" / str(pid) / "children").read_text().split()
        if children and (Path("/proc", children[0]) / "comm").read_text() == "systemd\n":
            return int(children[0])
    except FileNotFoundError:
        pass
    return 0


def _cgroups() -> Iterator[Path]:
    """Those that nspawn has made beside this process's own, and leaves."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, hierarchy, path = line.split(":", 2)
        mounts = {"name=systemd": ["systemd"], "": ["unified", "."]}.get(hierarchy, [])
        for mount in mounts:
            for name in ("payload", "supervisor"):
                made = Path("/sys/fs/cgroup", mount, path.lstrip("/"), name)
                if made.is_dir():
                    yield made


def wheelhouse(folder: Path) -> Path:
    """Wheels of all that the server needs, of what is installed here: no index is asked."""
    folder.mkdir()
    ours = ("cuckoo-api-server", "cuckoo-machinery-qemu")  # these are built there
    waiting, seen = [*ours, "hatchling"], set(ours)
    while waiting:
        installed = distribution(waiting.pop())
        if installed.name not in seen:
            pack(installed, folder)
        seen.add(installed.name)
        wanted = map(Requirement, installed.requires or ())
        waiting += [
            one.name
            for one in wanted
            if one.name not in seen and (one.marker is None or one.marker.evaluate({"extra": ""}))
        ]
    return folder


def pack(installed: Distribution, folder: Path) -> None:
    """Make the wheel of an installed package once more."""
    wheel = installed.read_text("WHEEL") or ""
    tags = [line.partition(": ")[2] for line in wheel.splitlines() if line.startswith("Tag: ")]
    parts = [
        ".".join(dict.fromkeys(part))
        for part in zip(*(tag.split("-") for tag in tags), strict=True)
    ]
    name = installed.metadata["Name"].replace("-", "_").replace(".", "_")
    path = folder / f"{'-'.join([name, installed.version, *parts])}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in installed.files or ():
            inside = PurePosixPath(file)
            if {"..", "__pycache__"} & {*inside.parts} or inside.suffix == ".pyc":
                continue  # programs and what is compiled, which are made anew
            archive.write(file.locate(), str(inside))
