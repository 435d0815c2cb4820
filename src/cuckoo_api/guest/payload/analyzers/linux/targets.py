"""Decides how a target is run: which command, in which folder, as which user."""

import os
import pwd
import shlex
import shutil
import sys
import tempfile
from typing import Dict, List, Optional

from analysisconf import AnalysisConf
from results import Log

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FETCH = ("import sys, urllib.request as r\n"
         "open('download', 'wb').write(r.urlopen(sys.argv[1], timeout=20).read())")


class Command:
    """What is run: words, folder and user. ``target`` is the sample's path or empty."""

    def __init__(self, words: List[str], cwd: str, user: str, target: str) -> None:
        self.words = words
        self.cwd = cwd
        self.user = user
        self.target = target


def environment(user: str) -> Dict[str, str]:
    """The environment of a login of this user; empty means the one that runs this."""
    account = pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())
    return {
        "HOME": account.pw_dir, "LOGNAME": account.pw_name, "USER": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh", "PATH": PATH, "LANG": "C.UTF-8",
        "TERM": "linux", "PWD": "/",
    }


def choose_command(conf: AnalysisConf, log: Log) -> Command:
    """The command for a configuration. Raises OSError when the sample is missing."""
    user = conf.options.get("user", "")
    if user and not _known(user):
        log.warning("No user %r here, running as %s instead." % (user, os.getuid()))
        user = ""
    cwd = tempfile.mkdtemp(prefix="work-")
    os.chmod(cwd, 0o755)
    if user:
        shutil.chown(cwd, user)
    if conf.category == "url" or conf.package == "url":
        return Command(_fetch(conf.target), cwd, user, "")
    if conf.package == "reboot":
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "autostart.sh")
        return Command(["/bin/sh", script], cwd, user, "")
    target = os.path.join(tempfile.gettempdir(), os.path.basename(conf.file_name or conf.target))
    os.chmod(target, 0o755)
    arguments = _split(conf.options.get("arguments", ""), log)
    interpreter = _interpreter(conf.package, target, log)
    return Command(interpreter + [target] + arguments, cwd, user, target)


def _interpreter(package: str, target: str, log: Log) -> List[str]:
    """The words before the sample's path; none when the kernel can start it itself."""
    with open(target, "rb") as file:
        start = file.read(4096)
    if package == "python":
        return [_python()]
    if package == "sh":
        return [] if start.startswith(b"#!") else ["/bin/sh"]
    if package not in ("", "generic", "elf"):
        log.warning("No package %r for Linux, choosing by the file instead." % package)
    if package == "elf" or start.startswith((b"\x7fELF", b"#!")):
        return []
    if target.endswith((".py", ".pyw")):
        return [_python()]
    return ["/bin/sh"] if b"\0" not in start else []


def _python() -> str:
    return shutil.which("python3", path=PATH) or sys.executable


def _fetch(url: str) -> List[str]:
    """A command that fetches a URL into the working folder, with the first tool there is."""
    choices = (
        ["wget", "--tries=2", "--timeout=20", "--content-disposition", "--", url],
        ["curl", "--silent", "--show-error", "--location", "--max-time", "60",
         "--output", "download", "--", url],
        ["busybox", "wget", "-T", "20", "--", url],
    )
    for words in choices:
        tool = shutil.which(words[0], path=PATH)
        if tool:
            return [tool] + words[1:]
    return [_python(), "-c", FETCH, url]


def _split(text: str, log: Log) -> List[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        log.warning("Cannot split the arguments (%s), passing them as one." % error)
        return [text]


def _known(user: str) -> Optional[pwd.struct_passwd]:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None
