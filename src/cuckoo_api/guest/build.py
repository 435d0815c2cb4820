"""Builds the demo guest: a small Debian that boots in QEMU with the agent running.

Everything comes from the Debian packages of the host's own sources; nothing is installed on the
host, and nothing needs root where unprivileged user namespaces are allowed.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cuckoo_api.guest import rootfs
from cuckoo_api.guest.analyzer import PAYLOAD, is_left_behind
from cuckoo_api.guest.errors import GuestError
from cuckoo_api.guest.image import GuestImage, initrd, module_order, read_image

__all__ = ["BuildFailed", "GuestImage", "build_guest", "read_image"]

Progress = Callable[[str, float | None], None]

PACKAGES = (
    *("base-files", "base-passwd", "bash", "busybox-static", "coreutils", "cron", "dash"),
    *("findutils", "grep", "gzip", "hostname", "libc-bin", "libc6", "libpython3-stdlib", "login"),
    *("mawk", "passwd", "perl-base", "procps", "python3", "python3-minimal", "sed", "strace"),
    *("tar", "usr-is-merged", "wget"),
)
TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "chroot": "coreutils",
}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
CONSOLES = {"amd64": "console=tty0 console=ttyS0", "arm64": "console=tty0 console=ttyAMA0"}
# what keeps an emulated processor from calibrating clocks and probing old firmware
APPEND = "quiet panic=-1 tsc=reliable no_timer_check edd=off root=/dev/vda"
MEMORY = 256
DISK_SIZE = "2G"


class BuildFailed(GuestError):
    """The image could not be built; the text says which step failed and what to do."""

    code = "guest_build_failed"
    retry = False


async def build_guest(out: Path, progress: Progress) -> GuestImage:
    """Build the guest into ``out``, or return the one that is already there.

    ``progress`` is called with a sentence and the share done, 0 to 1, or None while a step of
    unknown length runs. Takes about a minute, needs 1.5 GB beside ``out`` meanwhile, and about
    200 MB there in the end. A folder with the same recipe is returned at once. Raises
    BuildFailed. Safe to call from several processes at once.
    """
    recipe = _recipe()
    done = await asyncio.to_thread(read_image, out)
    if done is not None and done.recipe == recipe:
        return done
    architecture = _check_host()
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = await asyncio.to_thread(_locked, out)
    try:
        done = await asyncio.to_thread(read_image, out)
        if done is not None and done.recipe == recipe:
            return done
        with _work_folder(out) as work:
            await _Build(work, architecture, recipe, progress).run()
            await asyncio.to_thread(_put_in_place, work / "image", out)
    finally:
        os.close(lock)
    built = read_image(out)
    if built is None:
        raise BuildFailed(f"{out} does not hold what was just built there")
    progress("The guest is built.", 1.0)
    return built


class _Build:
    """One build in a folder of its own."""

    def __init__(self, work: Path, architecture: str, recipe: str, progress: Progress) -> None:
        self._work = work
        self._architecture = architecture
        self._recipe = recipe
        self._progress = progress
        self._root = work / "root"
        self._image = work / "image"
        self._debs = work / "apt/cache/archives"
        self._kernel = work / "kernel"

    async def run(self) -> None:
        for folder in (self._root, self._image, self._kernel):
            folder.mkdir()
        self._progress("Reading Debian's package lists.", 0.0)
        await self._apt_update()
        self._progress("Downloading packages.", 0.1)
        await self._download()
        self._progress("Unpacking packages.", 0.3)
        await asyncio.to_thread(self._unpack)
        self._progress("Compiling Python modules.", 0.5)
        await self._in_root("/sbin/ldconfig")
        compiling = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode"]
        library = [f"/{path.relative_to(self._root)}" for path in self._python_folders()]
        await self._in_root(*compiling, "unchecked-hash", *library)
        await self._in_root(*compiling, "checked-hash", f"/{rootfs.AGENT}")
        self._progress("Writing the disk.", 0.8)
        await self._write_disk()
        await asyncio.to_thread(self._write_boot_files)

    async def _apt_update(self) -> None:
        apt = self._work / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()
        # some other source of this host may be out of reach; what matters is checked next
        await self._run(*self._apt("update"), check=False)

    def _apt(self, *words: str, tool: str = "apt-get") -> list[str]:
        apt = self._work / "apt"
        options = {
            "Dir::State": apt,
            "Dir::State::lists": apt / "lists",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache",
            "Dir::Log": apt,
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "APT::Architecture": self._architecture,
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        return [tool, *(f"-o{key}={value}" for key, value in options.items()), *words]

    async def _download(self) -> None:
        meta = f"linux-image-cloud-{self._architecture}"
        listed = await self._run(*self._apt("depends", meta, tool="apt-cache"), check=False)
        lines = (line.split() for line in listed.splitlines())
        kernels = [words[1] for words in lines if words[:1] == ["Depends:"]]
        if not kernels:
            raise BuildFailed(
                f"The package {meta} is not in this host's sources: check /etc/apt/sources.list "
                f"and the network (apt-get update), on Debian 12 or 13"
            )
        await self._run(*self._apt("install", "--yes", "--download-only", *PACKAGES))
        await self._run(*self._apt("download", kernels[0]), cwd=self._kernel)

    def _unpack(self) -> None:
        rootfs.prepare(self._root)
        try:
            rootfs.unpack(sorted(filter(rootfs.kept, self._debs.glob("*.deb"))), self._root)
            rootfs.unpack(sorted(self._kernel.glob("*.deb")), self._kernel)
            rootfs.configure(self._root)
        except (subprocess.CalledProcessError, OSError) as error:
            raise BuildFailed(f"A package could not be unpacked: {error}") from error

    def _python_folders(self) -> list[Path]:
        return sorted((self._root / "usr/lib").glob("python3.*"))

    async def _write_disk(self) -> None:
        raw = self._work / "rootfs.ext4"
        features = "lazy_itable_init=0,lazy_journal_init=0"
        command = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-J", "size=8", "-E", features]
        await self._as_root(*command, "-d", str(self._root), str(raw), DISK_SIZE)
        target = str(self._image / "rootfs.qcow2")
        await self._run("qemu-img", "convert", "-O", "qcow2", str(raw), target)

    def _write_boot_files(self) -> None:
        modules = module_order(self._kernel)
        if not modules:
            raise BuildFailed("The kernel package holds no virtio drivers")
        busybox = (self._root / "usr/bin/busybox").read_bytes()
        init = (PAYLOAD / "image/initrd-init").read_bytes()
        (self._image / "initrd.img").write_bytes(initrd(busybox, init, modules))
        shutil.copyfile(next((self._kernel / "boot").glob("vmlinu*")), self._image / "vmlinuz")
        image = GuestImage(
            recipe=self._recipe,
            architecture=self._architecture,
            append=f"{CONSOLES[self._architecture]} {APPEND}",
            memory=MEMORY,
            packages=dict(self._packages()),
        )
        (self._image / "guest.json").write_bytes(msgspec.json.format(msgspec.json.encode(image)))

    def _packages(self) -> Iterator[tuple[str, str]]:
        for folder in (self._debs, self._kernel):
            for package in sorted(folder.glob("*.deb")):
                name, version, *_ = package.name.split("_")
                if rootfs.kept(package):
                    yield name, version.replace("%3a", ":")

    async def _in_root(self, *command: str) -> None:
        """Run a program of the guest, in the guest's file system."""
        await self._as_root("chroot", str(self._root), *command)

    async def _as_root(self, *command: str) -> None:
        """As root, or as what looks like root from inside a user namespace."""
        wrapper = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
        await self._run(*wrapper, *command)

    async def _run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode(errors="replace")
        if check and process.returncode:
            raise BuildFailed(_explain(command, text), log=text[-4000:])
        return text


def _explain(command: Sequence[str], output: str) -> str:
    last = "\n".join(output.strip().splitlines()[-5:])
    if command[0] == "unshare":
        last += "\nAllow unprivileged user namespaces on this host, or build as root."
    return f"{command[0]} failed: {last}"


def _check_host() -> str:
    """Debian's name for this machine's architecture. Raises BuildFailed when a tool is missing."""
    tools = dict(TOOLS) if os.geteuid() == 0 else {**TOOLS, "unshare": "util-linux"}
    if "apt-get" in tools and shutil.which("apt-get") is None:
        raise BuildFailed("The guest is made of Debian packages: build it on Debian 12 or 13")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = sorted(
        {package for tool, package in tools.items() if not shutil.which(tool, path=path)}
    )
    if missing:
        raise BuildFailed(f"Tools are missing: apt-get install {' '.join(missing)}")
    architecture = MACHINES.get(platform.machine())
    if architecture is None:
        raise BuildFailed(f"No guest can be built on {platform.machine()}")
    return architecture


@functools.cache
def _recipe() -> str:
    """Hash of everything of ours that decides what the image holds."""
    digest = hashlib.sha256(platform.machine().encode())
    here = Path(__file__).parent
    sources = [here / name for name in ("build.py", "image.py", "rootfs.py")]
    for path in [*sources, *sorted(PAYLOAD.rglob("*"))]:
        name = path.relative_to(here)
        if path.is_file() and not is_left_behind(name) and "demo" not in name.parts:
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _locked(out: Path) -> int:
    """Wait for the lock beside the folder. Returns its handle; closing it lets go."""
    handle = os.open(out.parent / f".{out.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(image: Path, out: Path) -> None:
    """Rename the finished folder to its place; an older one leaves first."""
    image.chmod(0o755)
    old = image.with_name("old")
    if out.exists():
        out.rename(old)
    image.rename(out)
