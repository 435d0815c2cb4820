"""Turns unpacked Debian packages into the system of the guest: accounts, settings, start-up."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cuckoo_api.guest.analyzer import PAYLOAD

AGENT = "usr/lib/guest-agent"
MERGED = ("bin", "sbin", "lib", "lib64", "lib32", "libx32", "libo32")
EXCLUDED = (
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/i18n/*",
    "./usr/share/lintian/*",
    "./usr/share/bug/*",
    "./usr/lib/python3*/test/*",
    "./usr/lib/python3*/lib2to3/*",
    "./usr/lib/python3*/pydoc_data/*",
    "./usr/lib/python3*/config-*",
)
# never run in a guest that is not managed by dpkg
LEFT_OUT = (
    "adduser",
    "debconf",
    "dpkg",
    "libperl",
    "perl-modules",
    "usrmerge",
    "perl_",
    "sysvinit",
)
FOLDERS = (
    *("dev", "proc", "sys", "run", "tmp", "mnt", "root", "home/user", "etc/init.d", "opt", "srv"),
    *("usr/local/bin", "usr/local/sbin", "usr/local/lib", "usr/local/share", "var/log", "var/tmp"),
    *("var/spool/cron/crontabs", "etc/cron.d"),
)
FILES = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n::1\tlocalhost ip6-localhost\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 1\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/timezone": "Etc/UTC\n",
    "etc/shells": "/bin/sh\n/bin/bash\n/bin/dash\n",
    "etc/profile": 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n'
    "export PATH\nfor i in /etc/profile.d/*.sh; do\n  [ -r $i ] && . $i\ndone\nunset i\n",
    "etc/pam.d/common-auth": "auth required pam_unix.so nullok\n",
    "etc/pam.d/common-account": "account required pam_unix.so\n",
    "etc/pam.d/common-password": "password required pam_unix.so\n",
    "etc/pam.d/common-session": "session required pam_unix.so\n",
    "etc/pam.d/common-session-noninteractive": "session required pam_unix.so\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "b08dfa6083e7567a1921a715000001fb\n",
}
USER = "user:x:1000:1000:user,,,:/home/user:/bin/bash\n"
GROUP = "user:x:1000:\n"


def kept(package: Path) -> bool:
    """Whether a downloaded package belongs into the image."""
    return not package.name.startswith(LEFT_OUT)


def prepare(root: Path) -> None:
    """Make the links of a merged /usr, before anything is unpacked over them."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Unpack packages without their documentation. Raises CalledProcessError."""
    exclusions = [f"--exclude={pattern}" for pattern in EXCLUDED]
    tar = ["tar", "-x", "-p", "-C", str(root), "--keep-directory-symlink", *exclusions]
    for package in packages:
        source = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with subprocess.Popen(source, stdout=subprocess.PIPE) as deb:  # noqa: S603  # fixed words
            subprocess.run(tar, stdin=deb.stdout, check=True, capture_output=True)  # noqa: S603  # the same
        if deb.returncode:
            raise subprocess.CalledProcessError(deb.returncode, source)


def configure(root: Path) -> None:
    """Do what the packages' own scripts would have done, and what makes it this guest."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    (root / "home/user").chmod(0o755)
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _accounts(root)
    _dotfiles(root)
    _links(root)
    _start_up(root)


def _accounts(root: Path) -> None:
    master = root / "usr/share/base-passwd"
    passwd = (master / "passwd.master").read_text().replace(":*:", ":x:") + USER
    (root / "etc/passwd").write_text(passwd)
    groups = (master / "group.master").read_text().replace(":*:", ":x:")
    (root / "etc/group").write_text(groups + GROUP + "crontab:x:101:\n")
    shadow = "".join(f"{line.split(':')[0]}:*:19700:0:99999:7:::\n" for line in passwd.splitlines())
    (root / "etc/shadow").write_text(shadow)
    (root / "etc/shadow").chmod(0o640)


def _dotfiles(root: Path) -> None:
    for folder, names in (
        ("usr/share/base-files", {"dot.profile": "root/.profile", "dot.bashrc": "root/.bashrc"}),
        ("etc/skel", {".profile": "home/user/.profile", ".bashrc": "home/user/.bashrc"}),
    ):
        for source, target in names.items():
            if (root / folder / source).is_file():
                shutil.copyfile(root / folder / source, root / target)


def _links(root: Path) -> None:
    """Names that packages make only when they are configured, and busybox for what is missing."""
    folder = root / "usr/bin"
    for name, target in (
        ("awk", "mawk"),
        ("which", "which.debianutils"),
        ("sh", "dash"),
        ("python", "python3"),
    ):
        if not (folder / name).is_symlink() and (folder / target).exists():
            (folder / name).symlink_to(target)
    for name, target in (("var/run", "../run"), ("var/lock", "../run/lock")):
        if not (root / name).is_symlink():
            # some package brings the folder, whose files would then outlive a restart
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).symlink_to(target)
    listed = subprocess.run(  # noqa: S603  # of the package that was just unpacked
        [str(folder / "busybox"), "--list"], check=True, capture_output=True, text=True
    )
    for applet in listed.stdout.split():
        if not any((root / place / applet).exists() for place in ("usr/bin", "usr/sbin")):
            (folder / applet).symlink_to("busybox")
    init = root / "usr/sbin/init"
    init.unlink(missing_ok=True)
    init.symlink_to("../bin/busybox")


def _start_up(root: Path) -> None:
    image = PAYLOAD / "image"
    shutil.copyfile(image / "inittab", root / "etc/inittab")
    shutil.copyfile(image / "rcS", root / "etc/init.d/rcS")
    (root / "etc/init.d/rcS").chmod(0o755)
    agent = root / AGENT
    agent.mkdir(parents=True)
    shutil.copyfile(PAYLOAD / "agent.py", agent / "agent.py")
    shutil.copyfile(image / "agent-start", agent / "start")
    (agent / "start").chmod(0o755)
    # an analyzer that is here already need not be sent, and waits for its sample
    shutil.copytree(
        PAYLOAD / "analyzers/linux",
        agent / "analyzer",
        ignore=shutil.ignore_patterns("__pycache__", ".*"),
    )
