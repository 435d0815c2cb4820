"""What strace wrote becomes ``behavior``."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckoo_api.reporting import evidence as evidence_module
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors import behavior
from cuckoo_api.reporting.processors.trace import activity, calls
from cuckoo_api.reporting.processors.trace.syntax import arguments
from cuckoo_api.reporting.sections import EMPTY

Parse = Callable[[bytes], dict[str, Any]]


@pytest.fixture
def parse(folder: Path, evidence: Evidence, job: Job, notes: Notes) -> Parse:
    def run(trace: bytes) -> dict[str, Any]:
        (folder / "logs" / "trace.strace").write_bytes(trace)
        section = behavior.run(evidence, job, notes)
        decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(section))
        return decoded

    return run


def line(pid: int, call: str, at: int = 0) -> bytes:
    return f"{pid} 1700000000.{at:06} {call}\n".encode()


def trace(*lines: str) -> bytes:
    return b"".join(line(100, text, at) for at, text in enumerate(lines))


SCRIPT = """\
cd {folder}
echo one > "a>b, \\"c\\") = 3"
mv a* moved
mkdir inner
cat /etc/hostname >> moved
cp /bin/true inner/tool
inner/tool
python3 -c 'import os, threading
t = threading.Thread(target=lambda: open("by-thread", "w").close())
t.start()
t.join()
os.kill(os.getpid(), 9)'
rm moved
exit 3
"""


def strace(folder: Path, trace_file: Path, script: str) -> None:
    tool = shutil.which("strace")
    assert tool is not None, "strace is not installed"
    path = folder / "script.sh"
    path.write_text(script)
    path.chmod(0o755)
    subprocess.run(
        [tool, "-f", "-q", "-ttt", "-y", "-s", "512", "-o", trace_file, "/bin/sh", path],
        check=False,
        timeout=30,
        env={"PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("command", ['"./tool", ["./tool"]', '"/bin/sh", ["sh", "tool"]'])
def test_a_child_that_is_faster_than_the_news_of_it(parse: Parse, command: str) -> None:
    section = parse(
        line(100, 'chdir("/work") = 0', 1)
        + line(100, 'openat(AT_FDCWD</work>, "tool", O_WRONLY|O_CREAT, 0755) = 3</work/tool>', 2)
        + line(100, "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD <unfinished ...>", 3)
        + line(101, f"execve({command}, 0x1 /* 3 vars */) = 0", 4)
        + line(100, "<... clone resumed>, child_tidptr=0x7f) = 101", 5)
    )
    assert section["summary"]["dropped_executed"] == ["/work/tool"]
    [root] = section["processtree"]
    [child] = root["children"]
    assert child["process_path"] in ("/work/tool", "/bin/sh")


def test_a_real_trace_of_a_real_script(parse: Parse, tmp_path: Path) -> None:
    work = tmp_path / "guest"
    work.mkdir()
    strace(work, tmp_path / "real.strace", SCRIPT.format(folder=work))

    section = parse((tmp_path / "real.strace").read_bytes())

    summary = section["summary"]
    odd = f'{work}/a>b, "c") = 3'
    assert odd in summary["file_created"]
    assert [odd, f"{work}/moved"] in summary["file_moved"]
    assert f"{work}/inner" in summary["directory_created"]
    assert {f"{work}/moved", f"{work}/by-thread"} <= set(summary["file_written"])
    assert "/etc/hostname" in summary["file_read"]
    assert f"{work}/moved" in summary["file_deleted"]
    assert f"{work}/inner/tool" in summary["dropped_executed"]
    assert "inner/tool" in summary["command_line"]
    [root] = section["processtree"]
    assert root["process_name"] == "sh"
    assert root["ppid"] == 0
    assert [child["process_name"] for child in root["children"]][:3] == ["mv", "mkdir", "cat"]
    assert all(child["ppid"] == root["pid"] for child in root["children"])
    codes = {item["process_name"]: item["exit_code"] for item in section["processes"]}
    assert codes["sh"] == 3
    assert codes["mv"] == 0
    assert -9 in codes.values()
    stats = section["apistats"][str(root["pid"])]
    shell = next(item for item in section["processes"] if item["pid"] == root["pid"])
    assert sum(stats.values()) == len(shell["calls"])
    # a thread is no process
    threads = [item for item in section["processes"] if item["process_name"].startswith("python")]
    assert len(threads) == 1
    assert len({call["tid"] for call in threads[0]["calls"]}) == 2


def test_a_call_has_named_arguments_result_and_time(parse: Parse) -> None:
    section = parse(
        trace(
            'openat(AT_FDCWD</root>, "a\\tb", O_RDONLY|O_CLOEXEC) = 3</root/a\\tb>',
            'openat(AT_FDCWD</root>, "/gone", O_RDONLY) = -1 ENOENT (No such file or directory)',
            "mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3</x>, 0) = 0x7f00",
            "exit_group(0) = ?",
        )
    )

    [process] = section["processes"]
    first, second, third, last = process["calls"]
    assert first == {
        "category": "file",
        "api": "openat",
        "status": 1,
        "return_value": 3,
        "arguments": {
            "dirfd": "AT_FDCWD</root>",
            "filepath": "a\tb",
            "flags": "O_RDONLY|O_CLOEXEC",
        },
        "time": 1700000000.0,
        "tid": 100,
    }
    assert (second["status"], second["return_value"], second["errno"]) == (0, -1, "ENOENT")
    assert third["return_value"] == 0x7F00
    assert third["arguments"]["p5"] == "0"
    assert last["return_value"] is None
    assert section["summary"]["file_failed"] == ["/gone"]
    assert section["apistats"] == {"100": {"openat": 2, "mmap": 1, "exit_group": 1}}


def test_a_child_is_known_before_its_parent_hears_of_it(parse: Parse) -> None:
    section = parse(
        line(10, 'execve("/bin/sh", ["sh", "-c", "a b"], 0x1 /* 3 vars */) = 0')
        + line(10, "vfork( <unfinished ...>")
        + line(11, 'execve("/bin/a", ["a", "b c"], 0x1 /* 3 vars */ <unfinished ...>')
        + line(11, "<... execve resumed>) = 0")
        + line(11, "+++ exited with 7 +++")
        + line(10, "<... vfork resumed>) = 11")
        + line(10, "--- SIGCHLD {si_signo=SIGCHLD} ---")
        + line(10, "+++ killed by SIGKILL +++")
    )

    parent, child = section["processes"]
    assert (parent["pid"], parent["ppid"], parent["exit_code"]) == (10, 0, -9)
    assert (child["pid"], child["ppid"], child["exit_code"]) == (11, 10, 7)
    assert parent["command_line"] == "sh -c 'a b'"
    assert child["command_line"] == "a 'b c'"
    assert child["process_path"] == "/bin/a"


def test_a_forked_child_is_called_as_its_parent(parse: Parse) -> None:
    section = parse(
        line(10, 'execve("/bin/sh", ["sh"], 0x1 /* 3 vars */) = 0')
        + line(10, "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 11")
        + line(11, "getpid() = 11")
    )

    assert section["processes"][1]["process_name"] == "sh"


def test_a_pid_given_out_twice_is_two_processes(parse: Parse) -> None:
    section = parse(
        line(10, "fork() = 11")
        + line(11, "+++ exited with 1 +++")
        + line(10, "fork() = 11")
        + line(11, "+++ exited with 2 +++")
    )

    assert [item["exit_code"] for item in section["processes"]] == [None, 1, 2]
    assert len(section["processtree"][0]["children"]) == 2


def test_a_thread_that_execs_continues_as_its_process(parse: Parse) -> None:
    section = parse(
        line(10, "clone3({flags=CLONE_VM|CLONE_THREAD} => {parent_tid=[11]}, 88) = 11")
        + line(11, 'execve("/bin/b", ["b"], 0x1 /* 3 vars */ <unfinished ...>')
        + line(10, "+++ superseded by execve in pid 11 +++")
        + line(10, "<... execve resumed>) = 0")
    )

    [process] = section["processes"]
    assert (process["pid"], process["process_name"]) == (10, "b")


def test_addresses_and_names_that_were_connected_to(parse: Parse) -> None:
    section = parse(
        trace(
            "connect(3<socket:[1]>, {sa_family=AF_INET, sin_port=htons(53), "
            'sin_addr=inet_addr("10.0.2.3")}, 16) = 0',
            'sendto(3<socket:[1]>, "\\0224\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0'
            '\\4evil\\7example\\3com\\0\\0\\1\\0\\1", 34, MSG_NOSIGNAL, NULL, 0) = 34',
            "connect(4<TCP:[::1:9->::2:443]>, {sa_family=AF_INET6, sin6_port=htons(443), "
            "sin6_flowinfo=htonl(0), "
            'inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) '
            "= -1 EINPROGRESS (Operation now in progress)",
            'connect(5<socket:[2]>, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = 0',
            "bind(6<socket:[3]>, {sa_family=AF_INET, sin_port=htons(4444), "
            'sin_addr=inet_addr("0.0.0.0")}, 16) = 0',
        )
    )

    summary = section["summary"]
    assert summary["connects_ip"] == ["10.0.2.3", "2001:db8::1"]
    assert summary["connects_host"] == ["10.0.2.3:53", "[2001:db8::1]:443"]
    assert summary["resolves_host"] == ["evil.example.com"]
    assert summary["listens_on"] == ["0.0.0.0:4444"]


def test_permissions_owners_and_locks(parse: Parse) -> None:
    section = parse(
        trace(
            'chdir("/work") = 0',
            'chmod("tool", 0755) = 0',
            "fchmod(3</etc/x, 0777>, 0600) = 0",
            'fchmodat(AT_FDCWD</work>, "sub/a", 04755) = 0',
            'fchmodat2(AT_FDCWD</work>, "b", 0, AT_SYMLINK_NOFOLLOW) = 0',
            'chmod("/gone", 0700) = -1 ENOENT (No such file or directory)',
            'fchownat(AT_FDCWD</work>, "tool", 0, -1, 0) = 0',
            "fchown(3</etc/x>, 1000, 1000) = 0",
            'openat(AT_FDCWD</work>, "/run/one.pid", O_WRONLY|O_CREAT, 0600) = 3</run/one.pid>',
            "flock(4</tmp/once>, LOCK_EX|LOCK_NB) = 0",
            "flock(4</tmp/once>, LOCK_UN) = 0",
            "flock(5</tmp/held>, LOCK_EX|LOCK_NB) = -1 EAGAIN (Resource temporarily unavailable)",
            'bind(6<UNIX:[9]>, {sa_family=AF_UNIX, sun_path=@"only\\0one"}, 20) = 0',
        )
    )

    summary = section["summary"]
    assert summary["permissions_changed"] == [
        "0755 /work/tool",
        "0600 /etc/x, 0777",
        "04755 /work/sub/a",
        "0 /work/b",
    ]
    assert summary["owner_changed"] == ["0:-1 /work/tool", "1000:1000 /etc/x"]
    assert summary["mutex"] == ["/run/one.pid", "/tmp/once", "@only\0one"]


def test_the_timeline_has_what_was_done_first(
    parse: Parse, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = parse(
        line(10, 'execve("/bin/sh", ["sh"], 0x1 /* 3 vars */) = 0', 1)
        + line(10, 'openat(AT_FDCWD</>, "/etc/hostname", O_RDONLY) = 3</etc/hostname>', 2)
        + line(10, "fork() = 11", 3)
        + line(11, 'rename("/a", "/b") = 0', 4)
        + line(11, 'unlink("/b") = 0', 5)
        + line(10, 'unlink("/b") = 0', 6)
        + line(11, "+++ exited with 0 +++", 7)
    )

    assert section["timeline"] == [
        {"time": 1700000000.000001, "pid": 10, "category": "command_line", "value": "sh"},
        {"time": 1700000000.000004, "pid": 11, "category": "file_moved", "value": ["/a", "/b"]},
        {"time": 1700000000.000005, "pid": 11, "category": "file_deleted", "value": "/b"},
    ]
    [root] = section["processtree"]
    assert (root["ended"], root["exit_code"]) == (None, None)
    assert (root["children"][0]["ended"], root["children"][0]["exit_code"]) == (
        1700000000.000007,
        0,
    )
    monkeypatch.setattr(activity, "MAX_TIMELINE", 1)
    section = parse(trace('unlink("/b") = 0', 'unlink("/c") = 0'))
    assert len(section["timeline"]) == 1
    assert "behavior.timeline: cut at 1" in notes.lines


def test_a_socket_may_be_annotated_with_both_its_ends(parse: Parse) -> None:
    section = parse(
        trace("accept(3<TCP:[0.0.0.0:80]>, NULL, NULL) = 4<TCP:[10.0.0.1:80->10.0.0.2:999]>")
    )

    assert section["apistats"] == {"100": {"accept": 1}}


def test_a_link_in_the_path_does_not_hide_where_was_written(parse: Parse) -> None:
    section = parse(
        trace('openat(AT_FDCWD</tmp>, "link/x", O_WRONLY|O_CREAT, 0644) = 3</etc/cron.d/x>')
    )

    assert section["summary"]["file_written"] == ["/etc/cron.d/x"]


def test_a_file_name_cannot_forge_a_result(parse: Parse) -> None:
    name = "a) = 5</etc/passwd> (x)"
    section = parse(
        trace(
            f'openat(AT_FDCWD</t>, "{name}", O_WRONLY|O_CREAT) = '
            "3</t/a) = 5\\74/etc/passwd\\76 (x)>",
            'unlink("b) = 0") = -1 ENOENT (No such file or directory)',
        )
    )

    assert section["summary"]["file_written"] == [f"/t/{name}"]
    assert "file_deleted" not in section["summary"]


def test_garbage_costs_a_note_and_nothing_else(parse: Parse, notes: Notes) -> None:
    section = parse(
        b"\x00\xff\n"
        b"not a line\n"
        b"99999999999999 1.0 open() = 0\n"
        + line(10, "<... open resumed>) = 3")
        + line(10, "))))((( = \\\\")
        + line(10, 'mkdir("/ok", 0755) = 0')
        + line(10, 'open("/cut, O_RD')
        + b"11 17"
    )

    assert section["summary"] == {"directory_created": ["/ok"]}
    assert any("lines were not understood" in note for note in notes.lines)


def test_a_line_without_end_is_not_kept(parse: Parse, notes: Notes) -> None:
    section = parse(
        b"1 1.0 write(1, " + b"x" * (3 << 20) + b"\n" + line(10, 'mkdir("/after", 0755) = 0')
    )

    assert section["summary"] == {"directory_created": ["/after"]}
    assert any("was dropped" in note for note in notes.lines)


def test_what_is_cut_is_said(parse: Parse, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "MAX_SUMMARY", 5)
    monkeypatch.setattr(activity, "MAX_PROCESSES", 3)
    monkeypatch.setattr(activity, "MAX_CALLS", 10)

    section = parse(
        b"".join(line(10 + n, f'mkdir("/d{n}", 0755) = 0') for n in range(20))
        + b"".join(line(10, "getpid() = 1") for _ in range(20))
    )

    assert section["summary"]["directory_created"] == [f"/d{n}" for n in range(5)]
    assert len(section["processes"]) == 3
    assert sum(len(item["calls"]) for item in section["processes"]) == 10
    assert "behavior.summary.directory_created: cut at 5" in notes.lines
    assert "behavior.processes: cut at 3" in notes.lines
    assert "behavior.processes[].calls: 10 of 23 calls are kept" in notes.lines


def test_what_is_said_again_is_counted_also_when_no_call_is_kept(
    parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "MAX_CALLS", 3)
    monkeypatch.setattr(activity, "MAX_SUMMARY", 2)
    remove = 'unlink("x") = 0'

    section = parse(
        trace('chdir("/a") = 0', remove, remove, remove, remove, 'chdir("/b") = 0', remove, remove)
        + line(100, "+++ exited with 0 +++")
        + trace(remove, remove, 'chdir("/c") = 0', remove)
    )

    # the same words, but in another folder, and then by another process of the same number
    assert section["summary"]["file_deleted"] == ["/a/x", "/b/x"]
    assert section["apistats"] == {"100": {"chdir": 3, "unlink": 9}}
    assert [item["summary"].get("file_deleted") for item in section["generic"]] == [
        ["/a/x", "/b/x"],
        None,
    ]
    assert [len(item["calls"]) for item in section["processes"]] == [3, 0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trace(
    parse: Parse, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in {"MAX_CALLS": 100, "MAX_PROCESSES": 50, "MAX_SUMMARY": 50}.items():
        monkeypatch.setattr(activity, name, limit)
    monkeypatch.setattr(behavior, "MAX_KNOWN", 500)
    monkeypatch.setattr(calls, "MAX_PATHS", 500)
    monkeypatch.setattr(evidence_module, "CHUNK", 16 << 10)
    peaks = []
    for count in (2_000, 16_000):
        # a fork bomb whose children never end, each with a file of its own
        text = b"".join(
            line(100, f"fork() = {200 + n}", n) + line(200 + n, f'unlink("/tmp/{n}") = 0', n)
            for n in range(count)
        )
        tracemalloc.start()
        section = parse(text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(section["processes"]) == 50

    assert peaks[1] < peaks[0] * 1.2
    assert "behavior.processes: cut at 50" in notes.lines
    assert any(note.startswith("behavior.processes[].calls: 100 of ") for note in notes.lines)


def test_a_tree_too_deep_for_json_is_flattened(parse: Parse, notes: Notes) -> None:
    section = parse(b"".join(line(n, f"fork() = {n + 1}") for n in range(1, 500)))

    depth, nodes = 0, section["processtree"]
    while nodes:
        depth, nodes = depth + 1, nodes[0]["children"]
    assert depth == activity.MAX_DEPTH + 1
    assert len(section["processes"]) == 500
    assert any("depth" in note for note in notes.lines)


def test_a_circle_of_parents_is_not_believed(parse: Parse) -> None:
    section = parse(line(1, "fork() = 2") + line(2, "fork() = 1") + line(2, "fork() = 2"))

    assert [item["ppid"] for item in section["processes"]] == [0, 1]


def test_no_trace_is_a_note(evidence: Evidence, job: Job, notes: Notes) -> None:
    assert behavior.run(evidence, job, notes)["processes"] == []
    assert notes.lines == ["behavior: the guest sent no trace"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'3</a, b>, "x, \\"y", 5', ["3</a, b>", 'x, "y', "5"]),
        (b'{a=1, b=[2, 3]}, f(4, 5), "z"...', ["{a=1, b=[2, 3]}", "f(4, 5)", "z"]),
        (b"1<<3, {x} => {y=[7]}, 88", ["1<<3", "{x} => {y=[7]}", "88"]),
        (
            b'"/b", ["b", "c"], 0x7 /* 3 vars, or so */',
            ["/b", '["b", "c"]', "0x7 /* 3 vars, or so */"],
        ),
        (b"", []),
        (b'"unclosed, 5', ['"unclosed', "5"]),
    ],
)
def test_arguments_are_cut_at_the_right_commas(text: bytes, expected: list[str]) -> None:
    assert list(arguments("unknown", text).values()) == expected


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                lambda pid, text: b"%d 1.5 %s" % (pid, text),
                st.integers(0, 5),
                st.one_of(
                    st.binary(max_size=60),
                    st.sampled_from(
                        [
                            b"fork() = 3",
                            b"clone(flags=CLONE_THREAD) = 2",
                            b"+++ exited with 0 +++",
                            b"+++ killed by SIGNOPE +++",
                            b"+++ superseded by execve in pid 2 +++",
                            b"vfork( <unfinished ...>",
                            b"<... vfork resumed>) = 4",
                            b'open("\\377\\0", O_RDWR) = 99999999999999999999',
                            b'execve("\\',
                            b'execve("/a", [], 0) = 0',
                        ]
                    ),
                ),
            ),
        ),
        max_size=30,
    )
)
def test_nothing_that_a_guest_sends_breaks_it(parse: Parse, lines: list[bytes]) -> None:
    section = parse(b"\n".join(lines))

    assert set(section) == set(EMPTY["behavior"])


def test_dns_over_a_socket_that_is_no_dns_socket_is_not_guessed(parse: Parse) -> None:
    query = "\\0" * 4 + "\\0\\1" + "\\0" * 6 + "\\1a\\0\\0\\1\\0\\1"
    lookalike = f'sendto(3<socket:[1]>, "{query}", 19, 0, NULL, 0) = 19'
    real = lookalike.replace("NULL", "{sa_family=AF_INET, sin_port=htons(53)}")

    assert "resolves_host" not in parse(trace(lookalike))["summary"]
    assert parse(trace(real))["summary"]["resolves_host"] == ["a"]


def test_what_starts_after_a_restart_is_marked(folder: Path, parse: Parse) -> None:
    helper = "/tmp/analyzer/autostart.sh"
    restored = ["/root/.profile", "/etc/cron.d/x", "/usr/local/bin/by-cron", "/etc/init.d/S9x"]
    noted = {"parent": 1, "restarted_by": "guest", "restored": restored}
    (folder / "reboot.json").write_bytes(msgspec.json.encode(noted))

    def runs(pid: int, *words: str) -> bytes:
        shown = ", ".join(f'"{word}"' for word in words)
        return line(pid, f'execve("{words[0]}", [{shown}], 0x1) = 0')

    def forks(pid: int, child: int) -> bytes:
        return line(pid, f"clone(child_stack=NULL, flags=SIGCHLD) = {child}")

    section = parse(
        runs(10, "/bin/sh", helper)
        + forks(10, 11) + runs(11, "/usr/bin/sleep", "0.1")
        + forks(10, 12) + runs(12, "/usr/sbin/cron", "-f")
        + line(12, 'openat(AT_FDCWD</>, "/etc/cron.d/x", O_RDONLY) = 3')
        + forks(12, 13) + runs(13, "/bin/sh", "-c", "/usr/local/bin/by-cron")
        + forks(13, 20) + runs(20, "/usr/bin/id")
        + forks(12, 14) + runs(14, "/bin/sh", "-c", "run-parts /etc/cron.hourly")
        + forks(10, 15) + forks(15, 16) + runs(16, "/etc/init.d/S9x", "start")
        + forks(10, 18) + forks(18, 19) + runs(19, "/bin/sh", "-c", "exec /usr/local/bin/by-cron")
        + runs(19, "/usr/bin/sleep", "600")
        + forks(10, 17) + runs(17, "/bin/bash", "-l", "-c", ":")
        + line(17, 'openat(AT_FDCWD</root>, ".profile", O_RDONLY) = 3')
    )  # fmt: skip

    found = {item["pid"]: item["autostart"] for item in section["processes"]}
    assert found == {
        10: None,
        11: None,
        12: {"by": "cron", "restored": False},
        13: {"by": "cron", "restored": True},
        14: {"by": "cron", "restored": False},
        20: {"by": "cron", "restored": True},
        15: None,
        16: {"by": "service", "restored": True},
        17: {"by": "login", "restored": True},
        18: None,
        19: {"by": "service", "restored": True},
    }
    [root] = section["processtree"]
    assert root["children"][1]["children"][0]["autostart"]["restored"] is True


@pytest.mark.parametrize("noted", [b"", b"{", b'{"restored": 5}', b"[]"])
def test_a_broken_note_of_a_restart_costs_the_marks_only(
    folder: Path, parse: Parse, noted: bytes
) -> None:
    (folder / "reboot.json").write_bytes(noted)
    section = parse(line(10, "fork() = 11"))
    assert [item["autostart"] for item in section["processes"]] == [None, None]
