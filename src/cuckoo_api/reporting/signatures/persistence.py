"""Ways to be started again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import (
    Facts,
    Mark,
    Observation,
    PlantedFile,
    Signature,
    mark,
    program,
)


class PersistenceCron(PlantedFile):
    name = "persistence_cron"
    description = "Plants a cron job, to be started at set times"
    severity = 3
    ttp = ("T1053.003",)
    places = re.compile(
        r"^/etc/(?:crontab$|anacrontab$|cron\.(?:d|hourly|daily|weekly|monthly)/.)"
        r"|^/var/spool/(?:cron|at|anacron)/."
    )


class PersistenceShell(PlantedFile):
    name = "persistence_shell"
    description = "Changes a start-up file of the shell, to be started at the next login"
    severity = 3
    ttp = ("T1546.004",)
    places = re.compile(
        r"^/etc/(?:profile|bash\.bashrc|bashrc|zshrc|zsh/.+|profile\.d/.+)$"
        r"|/\.(?:profile|bashrc|bash_profile|bash_login|bash_logout|zshrc|zprofile|zshenv|kshrc|cshrc)$"
    )


class PersistenceSystemd(PlantedFile):
    name = "persistence_systemd"
    description = "Plants a systemd unit, to be started by the system"
    severity = 3
    ttp = ("T1543.002",)
    places = re.compile(
        r"^/(?:etc|run|lib|usr/lib|usr/local/lib)/systemd/(?:system|user)/."
        r"|/\.config/systemd/user/."
    )


class PersistenceInit(PlantedFile):
    name = "persistence_init"
    description = "Changes an init script such as rc.local, to be started at boot"
    severity = 3
    ttp = ("T1037.004",)
    places = re.compile(
        r"^/etc/(?:rc\.local$|inittab$|init\.d/.|rc\.d/.|rc[0-6S]\.d/.|init/[^/]+\.conf$)"
    )


class PersistencePreload(PlantedFile):
    name = "persistence_preload"
    description = "Has a library of its own loaded into every program"
    severity = 3
    ttp = ("T1574.006",)
    places = re.compile(r"^/etc/ld\.so\.preload$")


class PersistenceSshKey(PlantedFile):
    name = "persistence_ssh_key"
    description = "Adds a key with which somebody can log in over SSH"
    severity = 3
    ttp = ("T1098.004",)
    places = re.compile(r"/\.ssh/authorized_keys2?$")


class PersistencePam(PlantedFile):
    name = "persistence_pam"
    description = "Changes how logins are checked, to let somebody in or to learn passwords"
    severity = 3
    ttp = ("T1556.003",)
    places = re.compile(r"^/etc/pam\.d/.|/security/pam_[^/]+\.so$|^/etc/pam\.conf$")


class PersistenceUdev(PlantedFile):
    name = "persistence_udev"
    description = "Plants a rule for devices, to be started when one appears"
    severity = 3
    ttp = ("T1546.017",)
    places = re.compile(r"^/(?:etc|run|lib|usr/lib)/udev/rules\.d/.")


class PersistenceAutostart(PlantedFile):
    name = "persistence_autostart"
    description = "Plants a desktop entry, to be started with the user's session"
    severity = 3
    ttp = ("T1547.013",)
    places = re.compile(r"(?:/\.config|^/etc/xdg|/\.kde[^/]*)/[Aa]utostart/.")


class PersistenceUser(PlantedFile):
    name = "persistence_user"
    description = "Adds a user or changes a password"
    severity = 3
    ttp = ("T1136.001", "T1098")
    places = re.compile(r"^/etc/(?:passwd|shadow)$")

    _tool = program("useradd|adduser|usermod|chpasswd", r"(?! --?(?:h|V))")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        yield from super().marks(facts)
        for seen in facts.seen("command_line"):
            if self._tool.search(seen.path):
                yield mark("cmdline", seen.path, seen)


class StartedByItself(Signature):
    name = "started_by_itself"
    description = "After a restart, what the sample had planted started by itself"
    severity = 3
    ttp = ("T1547",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for process in facts.behavior.generic:
            if process.autostart and process.autostart.get("restored"):
                line = process.command_line or process.process_path
                who = Observation(line, process.pid, process.process_name)
                yield mark("process", line, who) | {
                    "description": f"started by {process.autostart.get('by')}"
                }
