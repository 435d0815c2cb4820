"""The logs of Cuckoo's and CAPE's Windows monitors become ``behavior``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import bson
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors import behavior
from cuckoo_api.reporting.processors.trace import activity
from cuckoo_api.reporting.sections import EMPTY

pytestmark = pytest.mark.slow

Parse = Callable[..., dict[str, Any]]
BEGAN = 1_700_000_000
EXE = "C:\\Users\\a\\sample.exe"


@pytest.fixture
def parse(folder: Path, evidence: Evidence, job: Job, notes: Notes) -> Parse:
    """Takes logs by pid and gives the section."""

    def run(logs: dict[int, Iterable[dict[str, Any]] | bytes]) -> dict[str, Any]:
        for pid, log in logs.items():
            data = log if isinstance(log, bytes) else b"".join(map(bson.encode, log))
            (folder / "logs" / f"{pid}.bson").write_bytes(data)
        decoded: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode(behavior.run(evidence, job, notes))
        )
        return decoded

    return run


class Log:
    """Writes a log as Cuckoo 2's monitor does: each call is explained before its first use."""

    def __init__(
        self, pid: int, ppid: int, path: str = EXE, *, line: str = "", at: float = 0.0,
        wide: int = 0,
    ) -> None:  # fmt: skip
        self.documents: list[dict[str, Any]] = [{"type": "debug", "msg": "hello"}]
        self._numbers: dict[str, int] = {}
        moment = int((BEGAN + at + 11_644_473_600) * 10_000_000)
        self.call(
            "__process__", category="__notification__", time_low=moment % 2**32,
            time_high=moment >> 32, pid=pid, ppid=ppid, module_path=path,
            command_line=line or f'"{path}" /x', is_64bit=wide, track=1,
        )  # fmt: skip

    def call(
        self, api: str, ok: int = 1, retval: int = 0, *, category: str = "file", t: int = 0,
        kinds: dict[str, str] | None = None, info: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None, **arguments: Any,
    ) -> Log:  # fmt: skip
        if api not in self._numbers:
            self._numbers[api] = len(self._numbers)
            names: list[Any] = ["is_success", ["retval", "x"] if category == "file" else "retval"]
            names += [[name, kinds[name]] if name in (kinds or {}) else name for name in arguments]  # type: ignore[index]
            self.documents.append(
                {"I": self._numbers[api], "type": "info", "name": api, "category": category,
                 "args": names} | (info or {})
            )  # fmt: skip
        self.documents.append(
            {"I": self._numbers[api], "T": 44, "t": t, "h": 1,
             "args": [ok, retval, *arguments.values()]} | (more or {})
        )  # fmt: skip
        return self


def test_a_call_in_cuckoos_shape(parse: Parse, notes: Notes) -> None:
    log = Log(100, 4, at=0.5)
    log.call(
        "NtCreateFile", t=1500, kinds={"file_handle": "p"},
        info={"flags_value": {"status_info": [[0, "FILE_SUPERSEDED"], [2, "FILE_CREATED"]]},
              "flags_bitmask": {"access": [[1, "READ"], [2, "WRITE"], [4, "RUN"]]}},
        more={"e": 2, "E": -1073741772, "s": ["a+0x1"]},
        file_handle=-1, filepath="C:\\x\\new.txt", status_info=2, access=3,
    )  # fmt: skip

    section = parse({100: log.documents})

    [process] = section["processes"]
    assert process["calls"] == [
        {
            "category": "file",
            "api": "NtCreateFile",
            "status": 1,
            "return_value": "0x00000000",
            "arguments": {
                "file_handle": "0xffffffff",
                "filepath": "C:\\x\\new.txt",
                "status_info": 2,
                "access": 3,
            },
            "flags": {"status_info": "FILE_CREATED", "access": "READ|WRITE"},
            "time": BEGAN + 2.0,
            "tid": 44,
            "stacktrace": ["a+0x1"],
            "last_error": 2,
            "nt_status": -1073741772,
        }
    ]
    assert section["apistats"] == {"100": {"NtCreateFile": 1}}
    assert section["summary"] == {"file_created": ["C:\\x\\new.txt"]}
    assert section["timeline"] == [
        {"time": BEGAN + 2.0, "pid": 100, "category": "file_created", "value": "C:\\x\\new.txt"}
    ]
    assert notes.lines == ["logs/100.bson: the monitor says: hello"]


def test_processes_are_a_tree_whatever_the_order_of_their_logs(parse: Parse) -> None:
    child = Log(7, 100, "C:\\Windows\\cmd.exe", line="cmd /c dir", at=2.0)
    child.call(
        "NtTerminateProcess", process_handle=-1, status_code=3, t=250, kinds={"process_handle": "p"}
    )
    wide = Log(8, 7, "C:\\Windows\\b.exe", at=3.0, wide=1)
    wide.call("NtClose", handle=-1, negative=-5, kinds={"handle": "p"})

    section = parse({7: child.documents, 8: wide.documents, 100: Log(100, 4).documents})

    [root] = section["processtree"]
    assert (root["pid"], root["ppid"], root["process_name"]) == (100, 4, "sample.exe")
    assert root["command_line"] == f'"{EXE}" /x'
    [below] = root["children"]
    assert (below["pid"], below["command_line"], below["first_seen"]) == (
        7,
        "cmd /c dir",
        BEGAN + 2,
    )
    assert (below["exit_code"], below["ended"]) == (3, BEGAN + 2.25)
    assert [item["pid"] for item in below["children"]] == [8]
    call = section["processes"][2]["calls"][0]
    assert call["arguments"] == {"handle": "0xffffffffffffffff", "negative": -5}


def test_what_windows_programs_do_is_summed_up(parse: Parse) -> None:
    log = Log(100, 4)
    log.call("NtCreateFile", file_handle="0x44", filepath="C:\\a", status_info=1)
    log.call("NtWriteFile", file_handle="0x44", buffer="x")
    log.call("NtReadFile", file_handle="0x44", buffer="x")
    log.call("NtClose", handle="0x44")
    log.call("NtWriteFile", file_handle="0x44", buffer="y")
    log.call("NtOpenFile", ok=0, file_handle="0x0", filepath="C:\\gone")
    log.call("MoveFileWithProgressW", oldfilepath="C:\\a", newfilepath="C:\\b")
    log.call("CopyFileExW", oldfilepath="C:\\b", newfilepath="C:\\c")
    log.call("DeleteFileW", filepath="C:\\c")
    log.call("DeleteFileA", ok=0, filepath="C:\\not deleted")
    log.call("CreateDirectoryExW", dirpath="C:\\d")
    log.call("RegOpenKeyExA", regkey="HKLM\\a")
    log.call("RegSetValueExW", regkey="HKLM\\a\\Run")
    log.call("RegQueryValueExW", regkey="HKLM\\a\\b")
    log.call("RegDeleteValueA", regkey="HKLM\\a\\c")
    log.call("NtCreateMutant", mutant_name="one")
    log.call("NtCreateMutant", mutant_name="")
    log.call("LdrLoadDll", module_name="ws2_32")
    log.call("DnsQuery_A", ok=0, hostname="evil.test")
    log.call("GetAddrInfoW", hostname="other.test")
    log.call("connect", ok=0, ip_address="192.0.2.1", port=80)
    log.call("ConnectEx", ip_address="2001:db8::1", port=443)
    log.call("InternetOpenUrlA", ok=0, url="http://evil.test/")
    log.call("URLDownloadToFileW", url="http://evil.test/x", filepath="C:\\x.exe")
    log.call("CreateProcessInternalW", filepath="", command_line='"C:\\x.exe" -s')
    log.call("ShellExecuteExW", filepath="calc.exe", parameters="1")
    log.call("IWbemServices_ExecQuery", query="SELECT *")

    assert parse({100: log.documents})["summary"] == {
        "file_opened": ["C:\\a"],
        "file_written": ["C:\\a", "C:\\x.exe"],
        "file_read": ["C:\\a"],
        "file_failed": ["C:\\gone"],
        "file_moved": [["C:\\a", "C:\\b"]],
        "file_copied": [["C:\\b", "C:\\c"]],
        "file_deleted": ["C:\\c"],
        "directory_created": ["C:\\d"],
        "regkey_opened": ["HKLM\\a"],
        "regkey_written": ["HKLM\\a\\Run"],
        "regkey_read": ["HKLM\\a\\b"],
        "regkey_deleted": ["HKLM\\a\\c"],
        "mutex": ["one"],
        "dll_loaded": ["ws2_32"],
        "resolves_host": ["evil.test", "other.test"],
        "connects_ip": ["192.0.2.1", "2001:db8::1"],
        "connects_host": ["192.0.2.1:80", "[2001:db8::1]:443"],
        "fetches_url": ["http://evil.test/"],
        "downloads_file": ["http://evil.test/x"],
        "command_line": ['"C:\\x.exe" -s', "calc.exe 1"],
        "dropped_executed": ["C:\\x.exe"],
        "wmi_query": ["SELECT *"],
    }


def test_the_words_of_capes_monitor(parse: Parse) -> None:
    moment = (BEGAN + 11_644_473_600) * 10_000_000
    low, high = moment % 2**32, moment >> 32
    names = ["is_success", "retval", "TimeLow", "TimeHigh", "ProcessIdentifier",
             "ParentProcessIdentifier", "ModulePath"]  # fmt: skip
    documents = [
        {"I": 0, "type": "info", "name": "__process__", "category": "__notification__",
         "args": names},
        # they come as numbers of 32 bits with a sign
        {"I": 0, "T": 1, "t": 0,
         "args": [1, 0, low - 2**32 if low >= 2**31 else low, high, 100, 4, EXE]},
        {"I": 1, "type": "info", "name": "NtCreateFile", "category": "filesystem",
         "args": ["is_success", ["retval", "h"], ["FileHandle", "h"], "FileName",
                  "ExistedBefore"]},
        {"I": 1, "T": 1, "t": 5, "R": 9, "P": 8, "r": 0, "aux": {"Note": "more"},
         "args": [1, -1, 68, "C:\\n", "no"]},
        {"I": 9, "type": "new_process", "name": "ignored"},
    ]  # fmt: skip

    section = parse({100: documents})

    [process] = section["processes"]
    assert (process["pid"], process["first_seen"]) == (100, BEGAN)
    assert process["command_line"] == EXE
    assert section["summary"] == {"file_created": ["C:\\n"]}
    [call] = process["calls"]
    assert call["return_value"] == "0xffffffff"
    assert call["arguments"] == {
        "FileHandle": "0x00000044", "FileName": "C:\\n", "ExistedBefore": "no", "Note": "more",
    }  # fmt: skip


def test_dumped_buffers_and_notifications(parse: Parse) -> None:
    log = Log(100, 4)
    log.documents.append({"type": "buffer", "buffer": b"\0" * 1000, "checksum": "none"})
    log.call("__exception__", category="__notification__", exception={"code": "0xc0000005"})

    [process] = parse({100: log.documents})["processes"]

    [call] = process["calls"]
    assert (call["api"], call["category"]) == ("__exception__", "__notification__")
    assert call["arguments"] == {"exception": {"code": "0xc0000005"}}


@pytest.mark.parametrize(
    ("tail", "note"),
    [
        (b"\x05", "logs/100.bson: the log breaks off"),
        (b"\xff\xff\xff\x7f", "logs/100.bson: the log breaks off"),
        (b"\x00\x00\x00\x00", "logs/100.bson: the log breaks off"),
        (b"\x40\x00\x00\x00abc", "logs/100.bson: the log breaks off"),
        (b"\x06\x00\x00\x00\xee\x00", "logs/100.bson: 1 messages were not understood"),
        (bson.encode({"I": 77, "args": []}),
         "logs/100.bson: 1 calls do not fit what was said about them"),
        (bson.encode({"I": 0, "args": [1]}),
         "logs/100.bson: 1 calls do not fit what was said about them"),
        (bson.encode({"I": 0}), "logs/100.bson: 1 calls do not fit what was said about them"),
    ],
)  # fmt: skip
def test_what_is_broken_costs_a_note(parse: Parse, notes: Notes, tail: bytes, note: str) -> None:
    good = b"".join(map(bson.encode, Log(100, 4).call("NtClose", handle=1).documents))

    section = parse({100: good + tail})

    assert len(section["processes"][0]["calls"]) == 1
    assert note in notes.lines


def test_a_log_that_does_not_say_whose_it_is(parse: Parse, notes: Notes) -> None:
    section = parse({100: b"not a log at all"})

    assert [item["pid"] for item in section["processtree"]] == [100]
    assert "logs/100.bson: the log does not say what process it is of" in notes.lines


def test_a_flood_of_calls_is_counted_and_cut(
    parse: Parse, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "MAX_CALLS", 10)
    log = Log(100, 4)
    for number in range(300):
        log.call("DeleteFileW", filepath=f"C:\\{number % 20}", padding="x" * 100_000)

    section = parse({100: log.documents})

    [process] = section["processes"]
    assert len(process["calls"]) == 10
    assert len(process["calls"][0]["arguments"]["padding"]) == 2048
    assert section["apistats"]["100"] == {"DeleteFileW": 300}
    assert len(section["summary"]["file_deleted"]) == 20
    assert "behavior.processes[].calls: 10 of 300 calls are kept" in notes.lines


def test_documents_nested_without_end_are_not_followed(parse: Parse, notes: Notes) -> None:
    inner = b"\x05\0\0\0\0"
    for _ in range(5_000):
        inner = struct.pack("<i", len(inner) + 8) + b"\x03a\0" + inner + b"\0"

    section = parse({100: inner + bson.encode({"type": "debug", "msg": "after it"})})

    assert len(section["processes"]) == 1
    assert "logs/100.bson: the monitor says: after it" in notes.lines


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(),
        st.binary(max_size=9),
        st.text(max_size=9).filter(lambda text: text.isprintable()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["$ref", "$id", "a", "b"]), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.fixed_dictionaries(
                {},
                optional={
                    "type": st.sampled_from(["info", "debug", "buffer", 5]),
                    "I": st.sampled_from([0, 1, "0"]),
                    "name": st.one_of(
                        st.sampled_from(["__process__", "NtCreateFile", "connect"]), VALUES
                    ),
                    "category": VALUES,
                    "args": st.one_of(
                        st.lists(
                            st.sampled_from(["filepath", "pid", ["TimeLow", "p"], 5]), max_size=3
                        ),
                        VALUES,
                    ),
                    "flags_value": st.one_of(st.just({"pid": [[0, "ZERO"]]}), VALUES),
                    "flags_bitmask": VALUES,
                    "T": VALUES, "t": VALUES, "s": VALUES, "e": VALUES, "E": VALUES, "aux": VALUES,
                },
            ),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_nothing_that_a_guest_sends_breaks_it(parse: Parse, parts: list[Any]) -> None:
    log = b"".join(part if isinstance(part, bytes) else bson.encode(part) for part in parts)

    assert set(parse({100: log})) == set(EMPTY["behavior"])
