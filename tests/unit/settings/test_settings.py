"""What an operator sees of the configuration: defaults, faults all at once, misspelt keys."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cuckoo_api.machinery import (
    API_VERSION,
    BackendConfig,
    MachineryBackend,
    MachineryPlugin,
    Option,
)
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings import Settings, default_conf, find_cwd, init_cwd, load_settings
from cuckoo_api.settings.init import with_value
from cuckoo_api.settings.load import SECTIONS


def backend(config: BackendConfig) -> MachineryBackend:
    raise AssertionError("settings make no backend")


PLUGIN = MachineryPlugin(
    name="qemu",
    api_version=API_VERSION,
    backend=backend,
    options=(
        Option("network", "auto", choices=("auto", "bridge", "user")),
        Option("pwd", secret=True),
    ),
    machine_options=(
        Option("image"),
        Option("memory", "256"),
        Option("pin", secret=True),
    ),
    default_conf="[qemu]\nmachines =\n",
)


def write(cwd: Path, **files: str) -> None:
    (cwd / "conf").mkdir(exist_ok=True)
    for name, text in files.items():
        (cwd / "conf" / f"{name}.conf").write_text(text)


def faults(cwd: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(cwd, [PLUGIN])
    return caught.value.faults


def test_the_files_that_ship_hold_every_key_with_its_default(tmp_path: Path) -> None:
    for file, sections in SECTIONS.items():
        text = default_conf(f"{file}.conf")
        for section, kind in sections.items():
            body = re.split(r"^\[", text.split(f"[{section}]\n")[1], flags=re.MULTILINE)[0]
            keys = re.findall(r"^(\w+) *=", body, re.MULTILINE)
            assert sorted(keys) == sorted(f.name for f in dataclasses.fields(kind))
        write(tmp_path, **{file: text})
    write(tmp_path, qemu=PLUGIN.default_conf)
    settings = load_settings(tmp_path, [PLUGIN])
    assert settings.warnings == ()
    empty = Settings(cwd=tmp_path, machinery=settings.machinery)
    assert settings == empty


def test_machines_are_read_with_the_plugin_s_keys(tmp_path: Path) -> None:
    write(
        tmp_path,
        cuckoo="[resultserver]\nip = 10.0.0.1\nport = 4042\n",
        qemu=(
            "[qemu]\nmachines = one, two\ninterface = br0\nnetwork = BRIDGE\n"
            "max_vmstartup_count = 2\n"
            "[one]\nlabel = one-label\nip = 10.0.0.2\ntags = a, b\nimage = /x.qcow2\n"
            "[two]\nip = 10.0.0.3\nplatform = windows\ninterface = br1\n"
            "resultserver_ip = 10.9.9.9\nresultserver_port = 5000\nsnapshot = clean\n"
        ),
    )
    qemu = load_settings(tmp_path, [PLUGIN]).machinery["qemu"]
    assert qemu.options == {"network": "bridge", "pwd": "", "interface": "br0"}
    assert qemu.max_vmstartup_count == 2
    one, two = qemu.machines
    assert (one.name, one.label, one.ip, one.tags) == ("one", "one-label", "10.0.0.2", ("a", "b"))
    assert (one.platform, one.interface) == ("linux", "br0")
    assert (one.resultserver_ip, one.resultserver_port) == ("10.0.0.1", 4042)
    assert (one.options["image"], one.options["memory"]) == ("/x.qcow2", "256")
    assert (two.label, two.platform, two.interface) == ("two", "windows", "br1")
    assert (two.resultserver_ip, two.resultserver_port) == ("10.9.9.9", 5000)


def test_all_faults_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    write(
        tmp_path,
        cuckoo=(
            "[cuckoo]\nmachinery = qemu, hyperv\nfreespace = lots\nmemory_dump = perhaps\n"
            "[api]\nhost = 0.0.0.0\nport = 99999\n[resultserver]\nip = here\nport = 0\n"
        ),
        routing="[routing]\nroute = tor\n",
        qemu="[qemu]\nmachines = one, two, three\n[one]\nip = 10.0.0.2\n[two]\nip = 10.0.0.2\n",
    )
    expected = """\
conf/cuckoo.conf:3 [cuckoo] freespace: 'lots'; allowed: a whole number from 0 to 2147483647
conf/cuckoo.conf:4 [cuckoo] memory_dump: 'perhaps'; allowed: yes, no, on, off, true, false, 1, 0
conf/cuckoo.conf:7 [api] port: '99999'; allowed: a whole number from 0 to 65535
conf/cuckoo.conf:6 [api] host: '0.0.0.0' is open to others and [cuckoo] api_token is empty; \
allowed without a token: 127.0.0.1, ::1, localhost
conf/cuckoo.conf:9 [resultserver] ip: 'here'; allowed: an IP address
conf/cuckoo.conf:10 [resultserver] port: '0'; allowed: a whole number from 1 to 65535
conf/routing.conf:2 [routing] route: 'tor'; allowed: none, sinkhole
conf/cuckoo.conf [cuckoo] machinery: no plugin is installed for 'hyperv'; installed: qemu \
(pip install cuckoo-machinery-hyperv)
conf/qemu.conf:2 [qemu] machines: 'three' has no section [three]
conf/qemu.conf [two] ip: '10.0.0.2' is conf/qemu.conf [one]'s already; allowed: one of its own"""
    assert sorted(faults(tmp_path)) == sorted(expected.split("\n"))


def test_a_misspelt_key_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(
        tmp_path,
        cuckoo="[cuckoo]\nfrespace = 5\nversion_check = yes\n[timeout]\ndefault = 1\n[feedback]\n",
        qemu="[qemu]\nmachines = one\n[one]\nip = 10.0.0.2\nimag = x\n[stray]\nip = 1\n",
    )
    assert load_settings(tmp_path, [PLUGIN]).warnings == (
        "conf/cuckoo.conf:2 [cuckoo] frespace: unknown key, ignored; did you mean 'freespace'?",
        "conf/cuckoo.conf:4 [timeout]: unknown section, ignored; did you mean 'timeouts'?",
        "conf/qemu.conf:5 [one] imag: unknown key, ignored; did you mean 'image'?",
        "conf/qemu.conf:6 [stray]: unknown section, ignored",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no section = 1\n", "no section headers"),
        ("[cuckoo]\nfreespace = 1\nfreespace = 2\n", "already exists"),
        ("[cuckoo]\n[cuckoo]\n", "already exists"),
    ],
)
def test_a_broken_file_is_a_fault(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path, cuckoo=text)
    [fault] = faults(tmp_path)
    assert fault.startswith("conf/cuckoo.conf: ")
    assert expected in fault


def test_no_text_at_all_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "conf" / "cuckoo.conf").write_bytes(b"[cuckoo]\n\xff\xfe\n")
    assert faults(tmp_path) == ["conf/cuckoo.conf: byte 9 is not UTF-8 text"]


def test_the_token_is_never_shown(tmp_path: Path) -> None:
    write(tmp_path, cuckoo="[cuckoo]\napi_token = sekret\n")
    settings = load_settings(tmp_path, [PLUGIN])
    assert settings.cuckoo.api_token == "sekret"
    assert "sekret" not in repr(settings)


def test_a_hypervisor_s_password_is_never_shown(tmp_path: Path) -> None:
    write(
        tmp_path,
        qemu="[qemu]\nmachines = one\npwd = sekret\n[one]\nip = 10.0.0.2\npin = sekret2\n",
    )
    settings = load_settings(tmp_path, [PLUGIN])
    qemu = settings.machinery["qemu"]
    assert (qemu.options["pwd"], qemu.machines[0].options["pin"]) == ("sekret", "sekret2")
    config = BackendConfig(
        name="qemu", machines=qemu.machines, state_dir=tmp_path, options=qemu.options
    )
    for shown in (settings, qemu, config, dataclasses.asdict(config), qemu.machines):
        assert "'pwd'" in repr(shown) or "'pin'" in repr(shown)
        assert "sekret" not in repr(shown)


def test_one_address_in_two_spellings_is_one(tmp_path: Path) -> None:
    write(tmp_path, qemu="[qemu]\nmachines = a, b\n[a]\nip = fd00::1\n[b]\nip = FD00:0:0::1\n")
    assert faults(tmp_path) == [
        "conf/qemu.conf [b] ip: 'fd00::1' is conf/qemu.conf [a]'s already; allowed: one of its own"
    ]


def test_init_fills_a_directory_and_keeps_what_was_edited(tmp_path: Path) -> None:
    cwd = tmp_path / "deep" / "cwd"
    names = {"cuckoo.conf", "routing.conf", "tokens.conf", "starter.yar", "qemu.conf"}
    assert {p.name for p in init_cwd(cwd, [PLUGIN])} == names
    token = load_settings(cwd, [PLUGIN]).cuckoo.api_token
    assert len(token) >= 32
    assert (cwd / "storage" / "analyses").is_dir()
    assert (cwd / "conf" / "cuckoo.conf").stat().st_mode & 0o777 == 0o600
    (cwd / "conf" / "routing.conf").write_text("# mine\n")
    (cwd / "conf" / "qemu.conf").unlink()
    assert [p.name for p in init_cwd(cwd, [PLUGIN])] == ["qemu.conf"]
    assert (cwd / "conf" / "routing.conf").read_text() == "# mine\n"
    assert load_settings(cwd, [PLUGIN]).cuckoo.api_token == token


def test_one_value_is_changed_and_the_comments_stay() -> None:
    text = "[a]\n# about key\nkey = 1\nother = 2\n\n[b]\nkey = 3\n"
    assert with_value(text, "b", "key", "9") == text.replace("= 3", "= 9")
    assert with_value(text, "a", "key", "") == text.replace("key = 1", "key =")
    with pytest.raises(ValueError, match=r"\[a\] nosuch"):
        with_value(text, "a", "nosuch", "1")


def test_where_the_working_directory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("CUCKOO_CWD", raising=False)
    assert find_cwd(None) == Path("/home/x/.cuckoo")
    monkeypatch.setenv("CUCKOO_CWD", "~/c")
    assert find_cwd(None) == Path("/home/x/c")
    assert find_cwd("/d") == Path("/d")
