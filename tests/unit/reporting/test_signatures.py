"""Each signature fires on its evidence, and only then."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.signatures import SIGNATURES, Facts, Signature, match_signatures, score


def facts(*, category: str = "file", target: str = "s.sh", **parts: Any) -> Facts:
    summary = parts.pop("summary", {})
    behavior = {
        "generic": [{"pid": 5, "process_name": "sh", "summary": summary}],
        "summary": summary,
    }
    return msgspec.convert(
        {"category": category, "target": target, "behavior": behavior, **parts}, Facts
    )


def fired(found: Facts) -> set[str]:
    notes = Notes()
    names = {item["name"] for item in match_signatures(found, notes)}
    assert notes.lines == []
    return names


DOWNLOAD = {"method": "GET", "uri": "http://e/x", "status": 200, "response_size": 9}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "persistence_cron",
        {"summary": {"file_written": ["/etc/cron.d/job"]}},
        {"summary": {"file_read": ["/etc/cron.d/job"], "file_written": ["/tmp/etc/cron.d/x"]}},
    ),
    (
        "persistence_shell",
        {"summary": {"file_moved": [["/tmp/x", "/root/.profile"]]}},
        {"summary": {"file_moved": [["/root/.profile", "/tmp/x"]]}},
    ),
    (
        "persistence_systemd",
        {"summary": {"file_created": ["/etc/systemd/system/x.service"]}},
        {"summary": {"file_created": ["/etc/systemd/journald.conf"]}},
    ),
    (
        "persistence_init",
        {"summary": {"file_written": ["/etc/rc.local"]}},
        {"summary": {"file_written": ["/etc/rc.locale"]}},
    ),
    (
        "persistence_preload",
        {"summary": {"file_written": ["/etc/ld.so.preload"]}},
        {"summary": {"file_failed": ["/etc/ld.so.preload"]}},
    ),
    (
        "persistence_ssh_key",
        {"summary": {"file_written": ["/home/u/.ssh/authorized_keys"]}},
        {"summary": {"file_written": ["/home/u/.ssh/known_hosts"]}},
    ),
    (
        "self_delete",
        {"summary": {"command_line": ["/tmp/s.sh"], "file_deleted": ["/tmp/s.sh"]}},
        {"summary": {"command_line": ["/tmp/s.sh"], "file_deleted": ["/tmp/other.sh"]}},
    ),
    (
        "network_download",
        {"summary": {"command_line": ["wget -q -O /tmp/p http://e/p"]}},
        {"summary": {"command_line": ["wget --version", "echo wget http://e/p"]}},
    ),
    (
        "mass_file_change",
        {"summary": {"file_moved": [[f"/d/{n}", f"/d/{n}.locked"] for n in range(60)]}},
        {"summary": {"file_moved": [[f"/d/{n}", f"/d/{n}.locked"] for n in range(10)]}},
    ),
    (
        "executes_dropped",
        {"summary": {"dropped_executed": ["/tmp/tool"]}},
        {"summary": {"file_written": ["/tmp/tool"], "command_line": ["/bin/ls"]}},
    ),
    (
        "reads_shadow",
        {"summary": {"file_read": ["/etc/shadow"]}},
        {"summary": {"file_read": ["/etc/passwd"]}},
    ),
    (
        "kernel_module_load",
        {"summary": {"module_loaded": ["/tmp/rootkit.ko"]}},
        {"summary": {"command_line": ["modprobe -r loop", "lsmod"]}},
    ),
    (
        "hidden_file",
        {"summary": {"file_created": ["/tmp/.x"]}},
        {"summary": {"file_created": ["/root/.bash_history", "/tmp/a.b", "/tmp/.sh/x"]}},
    ),
    (
        "disables_history",
        {"summary": {"command_line": ["sh -c 'unset HISTFILE; id'"]}},
        {"summary": {"command_line": ["grep history notes", "HISTFILE=/root/.h bash"]}},
    ),
]


def test_every_signature_has_a_case() -> None:
    assert [name for name, _, _ in CASES] == [kind.name for kind in SIGNATURES]


@pytest.mark.parametrize(("name", "yes", "no"), CASES, ids=[case[0] for case in CASES])
def test_it_fires_on_its_evidence_only(name: str, yes: dict[str, Any], no: dict[str, Any]) -> None:
    assert name in fired(facts(**yes))
    assert name not in fired(facts(**no))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("network_download", {
            "network": {"http": [DOWNLOAD]}, "dropped": [{"filepath": "/tmp/x", "size": 9}],
        }),
        ("self_delete", {"summary": {
            "command_line": ["/bin/sh ./s.sh"], "file_deleted": ["/tmp/s.sh"],
        }}),
        ("kernel_module_load", {"summary": {"command_line": ["/sbin/insmod ./x.ko"]}}),
        ("disables_history", {"summary": {"file_linked": ["/root/.bash_history -> /dev/null"]}}),
        ("disables_history", {"summary": {"file_deleted": ["/root/.bash_history"]}}),
        ("mass_file_change", {"summary": {"file_deleted": [f"/d/{n}" for n in range(60)]}}),
        ("reads_shadow", {"summary": {"file_failed": ["/etc/gshadow"]}}),
    ],
)  # fmt: skip
def test_other_evidence_of_the_same(name: str, parts: dict[str, Any]) -> None:
    assert name in fired(facts(**parts))


@pytest.mark.parametrize(
    "parts",
    [
        # the answer was not written
        {"network": {"http": [DOWNLOAD]}, "dropped": [{"filepath": "/tmp/x", "size": 8}]},
        # it was not found
        {
            "network": {"http": [DOWNLOAD | {"status": 404}]},
            "dropped": [{"filepath": "/tmp/x", "size": 9}],
        },
        # the analyzer's own work
        {
            "category": "url",
            "target": "http://e/x",
            "summary": {"command_line": ["wget -- http://e/x"]},
        },
    ],
)
def test_what_is_no_download(parts: dict[str, Any]) -> None:
    assert "network_download" not in fired(facts(**parts))


def test_the_evidence_names_the_process_and_comes_once() -> None:
    path = "/etc/cron.d/job"
    summary = {"file_created": [path], "file_written": [path]}

    [found] = match_signatures(facts(summary=summary), Notes())

    assert found["marks"] == [
        {
            "type": "ioc",
            "category": "file",
            "ioc": path,
            "description": None,
            "pid": 5,
            "process_name": "sh",
        }
    ]
    assert (found["markcount"], found["severity"], found["ttp"]) == (1, 3, ["T1053.003"])


def test_evidence_beyond_the_single_processes_counts_too() -> None:
    found = msgspec.convert(
        {"behavior": {"generic": [], "summary": {"file_written": ["/etc/rc.local"]}}}, Facts
    )

    assert fired(found) == {"persistence_init"}


def test_a_signature_that_fails_costs_only_itself() -> None:
    class Broken(Signature):
        name = "broken"
        description = "Raises"
        severity = 1

        def marks(self, facts: Facts) -> list[dict[str, Any]]:
            raise RuntimeError("oh")

    notes = Notes()
    found = match_signatures(
        facts(summary={"file_read": ["/etc/shadow"]}), notes, [Broken, *SIGNATURES]
    )

    assert [item["name"] for item in found] == ["reads_shadow"]
    assert notes.lines == ["signature broken: RuntimeError: oh"]


def test_the_score() -> None:
    assert score([]) == 0.0
    assert isinstance(score([]), float)
    assert score([1]) == 0.5
    assert score([2, 2]) == score([3]) == 3.0
    assert score([3] * 9) == 10.0
