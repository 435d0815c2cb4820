"""Ways to be started again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature, mark


class PlantedFile(Signature):
    """A file in one of the places that the system reads by itself."""

    places: ClassVar[re.Pattern[str]]

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.changed():
            if self.places.search(seen.path):
                yield mark("file", seen.path, seen)


class PersistenceCron(PlantedFile):
    name = "persistence_cron"
    description = "Plants a cron job, to be started at set times"
    severity = 3
    ttp = ("T1053.003",)
    references = ("https://attack.mitre.org/techniques/T1053/003/",)
    places = re.compile(
        r"^/etc/(?:crontab$|anacrontab$|cron\.(?:d|hourly|daily|weekly|monthly)/.)"
        r"|^/var/spool/(?:cron|at|anacron)/."
    )


class PersistenceShell(PlantedFile):
    name = "persistence_shell"
    description = "Changes a start-up file of the shell, to be started at the next login"
    severity = 3
    ttp = ("T1546.004",)
    references = ("https://attack.mitre.org/techniques/T1546/004/",)
    places = re.compile(
        r"^/etc/(?:profile|bash\.bashrc|bashrc|zshrc|zsh/.+|profile\.d/.+)$"
        r"|/\.(?:profile|bashrc|bash_profile|bash_login|bash_logout|zshrc|zprofile|zshenv|kshrc|cshrc)$"
    )


class PersistenceSystemd(PlantedFile):
    name = "persistence_systemd"
    description = "Plants a systemd unit, to be started by the system"
    severity = 3
    ttp = ("T1543.002",)
    references = ("https://attack.mitre.org/techniques/T1543/002/",)
    places = re.compile(
        r"^/(?:etc|run|lib|usr/lib|usr/local/lib)/systemd/(?:system|user)/."
        r"|/\.config/systemd/user/."
    )


class PersistenceInit(PlantedFile):
    name = "persistence_init"
    description = "Changes an init script such as rc.local, to be started at boot"
    severity = 3
    ttp = ("T1037.004",)
    references = ("https://attack.mitre.org/techniques/T1037/004/",)
    places = re.compile(
        r"^/etc/(?:rc\.local$|inittab$|init\.d/.|rc\.d/.|rc[0-6S]\.d/.|init/[^/]+\.conf$)"
    )


class PersistencePreload(PlantedFile):
    name = "persistence_preload"
    description = "Has a library of its own loaded into every program"
    severity = 3
    ttp = ("T1574.006",)
    references = ("https://attack.mitre.org/techniques/T1574/006/",)
    places = re.compile(r"^/etc/ld\.so\.preload$")


class PersistenceSshKey(PlantedFile):
    name = "persistence_ssh_key"
    description = "Adds a key with which somebody can log in over SSH"
    severity = 3
    ttp = ("T1098.004",)
    references = ("https://attack.mitre.org/techniques/T1098/004/",)
    places = re.compile(r"/\.ssh/authorized_keys2?$")
