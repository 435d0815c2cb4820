"""A real VirtualBox in a folder, whose interpreter runs machines: no kernel driver is needed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil
from guest import write_disk

from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend
from cuckoo_machinery_virtualbox.info import listed, listed_long, shown

HERE = Path(__file__).parent
SNAPSHOT = "clean"

Make = Callable[[], VirtualBoxBackend]


def virtualbox_folder() -> Path:
    """Where Debian's VirtualBox lies; made on the first run, which takes some two minutes."""
    cache = os.environ.get("CUCKOO_TEST_CACHE") or "~/.cache/cuckoo-tests"
    folder = Path(cache).expanduser().resolve() / "virtualbox"
    subprocess.run([HERE / "build_rig.sh", folder], check=True)
    return folder


class VirtualBox:
    """Its programs run in namespaces of their own (processes, mounts, network), and end with us."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.work = work
        self.home = work / "home"
        self.program = work / "VBoxManage"
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.home.mkdir()
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", "--"),
                *("unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--"),
                *(HERE / "run_rig.sh", self._folder, self.work),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        display = self._process.stdout.readline().strip()
        assert display, f"no X server: {(self.work / 'xvfb.log').read_text()}"
        [first] = psutil.Process(self._process.pid).children()
        home = f"HOME={self.home} VBOX_USER_HOME={self.home} USER=root LOGNAME=root"
        self._inside = (
            f"nsenter --target {first.pid} --mount --pid --net --ipc --wd=/ "
            f"chroot {self._folder} env {home} DISPLAY=:{display}"
        )
        self.program.write_text(
            f'#!/bin/sh\nexec {self._inside} /usr/lib/virtualbox/VBoxManage "$@"\n'
        )
        self.program.chmod(0o755)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def run(self, *words: str | Path) -> str:
        """A VBoxManage command that has to work."""
        done = subprocess.run([self.program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def make_machine(self, name: str) -> None:
        """A machine with 32 MiB, NAT, the guest's disk, its serial port a socket, a snapshot."""
        raw, disk = self.work / f"{name}.raw", self.work / f"{name}.vdi"
        write_disk(raw)
        self.run("convertfromraw", raw, disk)
        self.run("createvm", "--name", name, "--ostype", "Linux_64", "--register",
                 "--basefolder", self.work / "machines")  # fmt: skip
        self.run("modifyvm", name, "--memory", "32", "--nic1", "nat", "--audio-enabled", "off",
                 "--vm-execution-engine", "interpreter", "--uart1", "0x3f8", "4",
                 "--uartmode1", "server", self.serial(name))  # fmt: skip
        self.run("storagectl", name, "--name", "ide", "--add", "ide")
        self.run("storageattach", name, "--storagectl", "ide", "--port", "0", "--device", "0",
                 "--type", "hdd", "--medium", disk)  # fmt: skip
        self.run("snapshot", name, "take", SNAPSHOT)

    def serial(self, name: str) -> Path:
        """The socket of the machine's serial port, while it runs."""
        return self.work / f"{name}.serial"

    def uuid(self, name: str) -> str:
        """The machine's UUID."""
        return dict(listed(self.run("list", "vms")))[name]

    def signal_server(self, number: signal.Signals) -> None:
        """Send a signal to VBoxSVC. To be stopped, it is started first where it does not run."""
        if number is signal.SIGSTOP:
            self.run("list", "vms")
        name = number.name.removeprefix("SIG")
        subprocess.run([*self._inside.split(), "pkill", f"-{name}", "-x", "VBoxSVC"], check=True)

    def clean(self, name: str) -> None:
        """Back to the snapshot, with no other."""
        for snapshot in reversed(
            shown(self.run("showvminfo", name, "--machinereadable")).snapshots
        ):
            if snapshot.name != SNAPSHOT:
                self.run("snapshot", name, "delete", snapshot.uuid)
        self.run("snapshot", name, "restore", SNAPSHOT)

    def lose_network(self, name: str, snapshot: str) -> None:
        """Take a snapshot of the machine on a host-only interface that is not there."""
        self.run("modifyvm", name, "--nic1", "hostonly", "--hostonlyadapter1", "vboxnet0")
        self.run("snapshot", name, "take", snapshot)

    def make_empty(self, name: str, folder: Path) -> str:
        """A machine of nothing; its UUID."""
        said = self.run("createvm", "--name", name, "--register", "--basefolder", folder)
        return re.findall("UUID: (.*)", said)[0]

    def forget(self, uuid: str) -> None:
        """Have VirtualBox forget the machine."""
        self.run("unregistervm", uuid)

    async def released(self, name: str) -> None:
        """Until no session holds the machine. Asked so that it disturbs no other question."""
        while True:
            said = await asyncio.to_thread(self.run, "list", "vms", "--long")
            if not any(one.session for one in listed_long(said) if one.name == name):
                return
