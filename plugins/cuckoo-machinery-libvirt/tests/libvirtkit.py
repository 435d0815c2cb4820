"""A libvirtd of the tests' own, and two machines on it.

It runs in mount and process namespaces of its own: what it writes below /etc, /run and /var lies
in a temporary folder, a libvirtd of the host is neither seen nor touched, and whatever it has
started ends with the first process in there, which ends with the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt

from cuckoo_api.guest import GuestClient
from cuckoo_api.guest.image import GuestImage
from cuckoo_api.machinery import BackendConfig, MachineConfig
from cuckoo_machinery_libvirt.plugin import OPTIONS

libvirt.registerErrorHandler(lambda *_: None, None)  # it prints, beside raising

BRIDGE = "virbr74"
GATEWAY = "192.168.74.1"
ADDRESSES = {"one": "192.168.74.11", "two": "192.168.74.12"}
SNAPSHOT = "clean"
BOOT_TIMEOUT = 60
START_TIMEOUT = 30
QEMU_USER = {
    "passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\n",
}
"""As Debian's libvirt-daemon-system makes it, which would start a libvirtd on the host."""

# The first process reaps what others leave: libvirt waits until the process of a QEMU is gone.
# /dev/kvm is hidden: where root can open it and QEMU's user cannot, libvirt does not believe what
# it knows of QEMU, and asks it anew several times before each start.
HOLD = r"""
set -e
mount -t overlay -o "lowerdir=$1/etc:/etc" cuckoo-test /etc
mount -t overlay -o "lowerdir=$1/var:/var" cuckoo-test /var
for folder in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt run; do
    mount --bind "$1/$folder" "/$folder"
done
mount -t proc proc /proc
if [ -e /dev/kvm ]; then touch "$1/kvm"; chmod 600 "$1/kvm"; mount --bind "$1/kvm" /dev/kvm; fi
echo ready
exec env --ignore-signal=CHLD sleep infinity
"""

QEMU_CONF = """\
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
"""


class Libvirtd:
    """The daemon, which can be killed and started again; its machines run on meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"qemu+unix:///system?socket={folder}/run/libvirt/libvirt-sock"
        self._holder: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the namespaces."""
        # QEMU's user has to pass through
        self.folder.chmod(0o755)
        for name in ("etc/libvirt", "run", *(f"var/{n}/libvirt" for n in ("lib", "cache", "log"))):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        (self.folder / "etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
        for name, line in QEMU_USER.items():
            text = Path("/etc", name).read_text()
            if "\nlibvirt-qemu:" not in text:
                text += line
            (self.folder / "etc" / name).write_text(text)
        with (self.folder / "libvirtd.log").open("ab") as log:
            self._holder = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", "unshare", "--mount", "--pid", "--fork",
                 "--kill-child", "--", "sh", "-c", HOLD, "hold", str(self.folder)],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self._holder.stdout is not None
        with self._holder.stdout as said:
            assert said.readline() == "ready\n", self.log

    def inside(self, *command: str) -> list[str]:
        """The words that run a command in the namespaces."""
        assert self._holder is not None
        [first] = children(self._holder.pid)
        return ["nsenter", f"--target={first}", "--mount", "--pid", "--", *command]

    def start(self) -> None:
        """Start the daemon; it answers when this returns."""
        with (self.folder / "libvirtd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self.inside("libvirtd", "--timeout=0"), stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            assert self._daemon.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    @property
    def log(self) -> str:
        return (self.folder / "libvirtd.log").read_text(errors="replace")[-3000:]

    @property
    def pid(self) -> int:
        """The daemon's, as this process sees it."""
        assert self._daemon is not None
        [pid] = children(self._daemon.pid)
        return pid

    def kill(self) -> None:
        """kill -9 of the daemon, and of nothing else."""
        assert self._daemon is not None
        os.kill(self.pid, signal.SIGKILL)
        self._daemon.wait()
        self._daemon = None

    def freeze(self) -> None:
        """Stop the daemon: it neither answers nor hangs up."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on; and nsenter, which has stopped with it."""
        assert self._daemon is not None
        for pid in (self.pid, self._daemon.pid):
            os.kill(pid, signal.SIGCONT)

    def qemu(self, label: str) -> int:
        """The process of a running machine."""
        return self.qemus()[label]

    def qemus(self) -> dict[str, int]:
        """Every running machine's process."""
        found = {}
        for label in ADDRESSES:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    words = path.read_bytes().split(b"\0")
                    mine = any(str(self.folder).encode() in word for word in words)
                    if mine and f"guest={label},debug-threads=on".encode() in words:
                        found[label] = int(path.parent.name)
        return found

    def close(self) -> None:
        """End everything in the namespaces; return when it is gone."""
        if self._holder is None:
            return
        for first in children(self._holder.pid):
            handle = os.pidfd_open(first)
            os.kill(first, signal.SIGKILL)
            select.select([handle], [], [], 10)  # the kernel ends the others before it
            os.close(handle)
        self._holder.wait()
        if self._daemon is not None:
            self._daemon.wait()


@contextlib.contextmanager
def connected(uri: str) -> Iterator[libvirt.virConnect]:
    """A connection of the test's own: what somebody does in virt-manager."""
    connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()


@dataclass(frozen=True)
class Lab:
    """Two machines with live snapshots."""

    libvirtd: Libvirtd

    def config(self, state_dir: Path, **options: str) -> BackendConfig:
        """Their configuration; ``options`` change keys of ``[kvm]``."""
        own = {option.name: option.default for option in OPTIONS}
        own |= {"dsn": self.libvirtd.uri, "interface": BRIDGE}
        return BackendConfig(
            name="kvm",
            machines=tuple(
                MachineConfig(label=label, name=label, ip=ip, snapshot=SNAPSHOT)
                for label, ip in ADDRESSES.items()
            ),
            state_dir=state_dir,
            options=own | options,
        )


def make_machines(libvirtd: Libvirtd, image: GuestImage) -> None:
    """Define both machines, boot them at once, and keep them as they are once they answer."""
    own = libvirtd.folder / "image"
    # copies: libvirt gives files to QEMU's user, and the cache is not to be changed
    shutil.copytree(image.folder, own)
    with connected(libvirtd.uri) as connection:
        for number, (label, ip) in enumerate(ADDRESSES.items()):
            disk = libvirtd.folder / f"{label}.qcow2"
            run("qemu-img", "create", "-q", "-f", "qcow2",
                "-b", str(own / image.disk.name), "-F", "qcow2", str(disk))  # fmt: skip
            domain = connection.defineXML(_domain(label, number, ip, own, image, disk))
            domain.create()
        asyncio.run(_all_answer())
        for label in ADDRESSES:
            domain = connection.lookupByName(label)
            domain.snapshotCreateXML(f"<domainsnapshot><name>{SNAPSHOT}</name></domainsnapshot>")
            domain.destroy()
        del domain


@contextlib.asynccontextmanager
async def agent_of(label: str = "one") -> AsyncIterator[GuestClient]:
    """A running machine's agent, once it answers."""
    async with GuestClient(f"{ADDRESSES[label]}:8000") as agent:
        await agent.wait_ready(BOOT_TIMEOUT)
        yield agent


async def inside(agent: GuestClient, command: str) -> str:
    """What a shell command in the guest prints; it may not complain."""
    output, complaint = await agent.execute(command)
    assert complaint == "", complaint
    return output


async def _all_answer() -> None:
    async def one(label: str) -> None:
        async with agent_of(label):
            pass

    await asyncio.gather(*(one(label) for label in ADDRESSES))


def _domain(label: str, number: int, ip: str, folder: Path, image: GuestImage, disk: Path) -> str:
    append = f"{image.append} guestip={ip}/24 guestgw={GATEWAY} guestdns={GATEWAY}"
    return f"""<domain type='qemu'>
  <name>{label}</name><memory unit='MiB'>{image.memory}</memory><vcpu>1</vcpu>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
    <libosinfo:os id="http://debian.org/debian/12"/>
  </libosinfo:libosinfo></metadata>
  <os><type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{folder}/{image.kernel.name}</kernel><initrd>{folder}/{image.initrd.name}</initrd>
    <cmdline>{append}</cmdline></os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:74:{11 + number:02d}'/>
      <source bridge='{BRIDGE}'/><target dev='ckl{number}'/><model type='virtio'/>
      <rom enabled='no'/></interface>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <serial type='pty'/><video><model type='vga'/></video>
  </devices>
</domain>"""


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run(*command: str) -> str:
    """A command's output; it may not fail."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
