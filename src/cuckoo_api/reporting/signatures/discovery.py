"""What a sample learns of others' secrets and of the system."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import (
    Facts,
    Mark,
    Signature,
    TouchedFile,
    basename,
    mark,
)

ENOUGH_QUESTIONS = 3
MAX_WORDS = 10
"""Of a command line, that are looked at."""


class ReadsShadow(TouchedFile):
    name = "reads_shadow"
    description = "Reads the users' password hashes, or tries to"
    severity = 3
    ttp = ("T1003.008",)
    categories = ("file_read", "file_failed")
    places = re.compile(r"^/etc/g?shadow-?$")


class ReadsCredentials(TouchedFile):
    name = "reads_credentials"
    description = "Reads keys and passwords that programs keep, or looks for them"
    severity = 3
    ttp = ("T1552.001", "T1552.004")
    categories = ("file_read", "file_failed")
    places = re.compile(
        r"/\.ssh/(?:id_\w+|identity)$|/\.aws/credentials$|/\.kube/config$|/\.docker/config\.json$"
        r"|/\.(?:netrc|git-credentials|pgpass|my\.cnf|npmrc|pypirc|s3cfg)$|/\.gnupg/(?:secring|private-)"
        r"|/\.azure/\w+\.json$|/gcloud/(?:credentials\.db|application_default_credentials\.json)$"
        r"|/(?:wallet\.dat|keystore/UTC--[^/]+)$"
    )


class ReadsBrowserSecrets(TouchedFile):
    name = "reads_browser_secrets"
    description = "Reads what browsers keep of passwords and sessions, or looks for it"
    severity = 3
    ttp = ("T1555.003", "T1539")
    categories = ("file_read", "file_failed")
    places = re.compile(
        r"/(?:google-chrome|chromium|BraveSoftware|microsoft-edge|opera|vivaldi)[^/]*/.*"
        r"(?:Login Data|Cookies|Web Data)$"
        r"|/\.mozilla/.*(?:logins\.json|key[34]\.db|cookies\.sqlite|signons\.sqlite)$"
    )


class ReadsHistory(TouchedFile):
    name = "reads_history"
    description = "Reads what users typed into their shells, or looks for it"
    severity = 2
    ttp = ("T1552.003",)
    categories = ("file_read",)
    places = re.compile(r"/\.(?:bash|zsh|sh|ash|mysql|psql|python)_history$")


class SystemDiscovery(Signature):
    name = "system_discovery"
    description = "Asks several things about the machine, its users and its network"
    severity = 1
    ttp = ("T1082", "T1033", "T1016", "T1057")

    _questions = frozenset(
        {
            "arch", "arp", "df", "free", "getent", "groups", "hostname", "hostnamectl", "id",
            "ifconfig", "iostat", "ip", "last", "lastlog", "lsb_release", "lsblk", "lscpu", "lsmod",
            "lsof", "lspci", "mount", "netstat", "nproc", "ps", "route", "ss", "uname", "uptime",
            "w", "who", "whoami",
        }
    )  # fmt: skip
    _files = re.compile(
        r"^/etc/(?:os-release|issue|passwd|group|hosts|resolv\.conf|[a-z]+-release)$"
        r"|^/proc/(?:cpuinfo|meminfo|version|mounts|net/(?:tcp6?|route|arp|dev))$"
    )

    def marks(self, facts: Facts) -> Iterator[Mark]:
        found: dict[str, Mark] = {}
        for seen in facts.seen("command_line"):
            words = seen.path.split(maxsplit=MAX_WORDS)
            if not words:
                continue
            name = basename(words[0])
            if name in self._questions:
                found.setdefault(name, mark("cmdline", seen.path, seen))
            for word in words[1:]:
                if self._files.search(word):
                    found.setdefault(word, mark("cmdline", seen.path, seen))
        if len(found) >= ENOUGH_QUESTIONS:
            yield from found.values()
