"""docs/configuration.md and conf/ say what the settings are, no more and no less."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from docskit import ROOT, codes, page, rows, section, table

from cuckoo_api.machinery import Option
from cuckoo_api.settings import Vpn, default_conf, tokens
from cuckoo_api.settings.ini import Findings, IniFile
from cuckoo_api.settings.init import CORE_FILES
from cuckoo_api.settings.load import INHERITED, INHERITED_SECTIONS, MACHINE_KEYS, SECTIONS
from cuckoo_machinery_libvirt import plugin as kvm
from cuckoo_machinery_qemu import plugin as qemu
from cuckoo_machinery_virtualbox import plugin as virtualbox
from cuckoo_machinery_vsphere import plugin as vsphere

pytestmark = pytest.mark.slow

PAGE = page("docs/configuration.md")

FIELDS = [
    pytest.param(file, name, field, id=f"{file}.{name}.{field.name}")
    for file, sections in SECTIONS.items()
    for name, kind in sections.items()
    for field in dataclasses.fields(kind)
]


def in_file(field: dataclasses.Field[Any]) -> str:
    """A field's default as the file has it."""
    match field.default:
        case bool():
            return "yes" if field.default else "no"
        case int():
            return str(field.default // field.metadata.get("scale", 1))
        case tuple():
            return ", ".join(field.default)
        case None:
            return ""
        case _:
            return str(field.default)


def documented(file: str, name: str) -> dict[str, dict[str, str]]:
    return table(section(section(PAGE, f"conf/{file}.conf"), f"[{name}]"))


@pytest.mark.parametrize(("file", "name"), [(f, s) for f, of in SECTIONS.items() for s in of])
def test_every_key_of_a_section_is_documented(file: str, name: str) -> None:
    assert list(documented(file, name)) == [
        f.name for f in dataclasses.fields(SECTIONS[file][name])
    ]


@pytest.mark.parametrize(("file", "name", "field"), FIELDS)
def test_default_and_limits_are_documented(
    file: str, name: str, field: dataclasses.Field[Any]
) -> None:
    row = documented(file, name)[field.name]
    assert row["Meaning"]
    expected = in_file(field)
    assert row["Default"] == (f"`{expected}`" if expected else "empty")
    if "low" in field.metadata:
        assert row["Allowed"] == f"{field.metadata['low']} to {field.metadata['high']}"
    if "choices" in field.metadata:
        assert tuple(codes(row["Allowed"])) == field.metadata["choices"]


@pytest.mark.parametrize(("file", "name", "field"), FIELDS)
def test_the_files_that_ship_show_the_defaults(
    tmp_path: Path, file: str, name: str, field: dataclasses.Field[Any]
) -> None:
    path = tmp_path / f"{file}.conf"
    path.write_text(default_conf(path.name))
    ini = IniFile(path, path.name, Findings())
    assert ini.text(name, field.name, "it is missing") == in_file(field)


def test_what_may_stand_elsewhere_is_listed() -> None:
    text = section(PAGE, "Secrets")
    for file, name, field in (param.values for param in FIELDS):
        is_secret = "secret" in field.metadata
        assert (f"`[{name}] {field.name}`" in text) == is_secret, (file, name, field.name)
        assert ("(#secrets)" in documented(file, name)[field.name]["Meaning"]) == is_secret
    for options in (qemu.OPTIONS, kvm.OPTIONS, virtualbox.OPTIONS, vsphere.OPTIONS):
        for option in options:
            assert not option.secret or f"`{option.name}`" in text


def test_every_section_of_the_page_exists() -> None:
    for file, sections in SECTIONS.items():
        text = section(PAGE, f"conf/{file}.conf")
        shown = [line[4:] for line in text.splitlines() if line.startswith("### ")]
        assert shown == [f"[{name}]" for name in sections]
    assert {*(f"{file}.conf" for file in SECTIONS), "tokens.conf"} == set(CORE_FILES)


def test_the_keys_of_every_machine_are_documented() -> None:
    first, second = section(PAGE, "Machines of every machinery").split("Each machine's section")
    assert list(table(first)) == ["machines", "interface", "max_vmstartup_count"]
    assert list(table(second)) == list(MACHINE_KEYS)


@pytest.mark.parametrize(
    ("name", "heading", "options"),
    [
        ("qemu", "[qemu]", qemu.OPTIONS),
        ("qemu", "A machine", qemu.MACHINE_OPTIONS),
        ("kvm", "[kvm]", kvm.OPTIONS),
        ("virtualbox", "[virtualbox]", virtualbox.OPTIONS),
        ("vsphere", "[vsphere]", vsphere.OPTIONS),
    ],
)
def test_the_options_of_a_plugin_are_documented(
    name: str, heading: str, options: tuple[Option, ...]
) -> None:
    found = table(section(section(PAGE, f"conf/{name}.conf"), heading))
    assert list(found) == [option.name for option in options]
    for option in options:
        row = found[option.name]
        assert row["Default"] == (f"`{option.default}`" if option.default else "empty")
        if option.choices:
            assert tuple(codes(row["Allowed"])) == option.choices


@pytest.mark.parametrize(
    ("folder", "name", "options", "what"),
    [
        ("qemu", "qemu", qemu.OPTIONS, "`interface`, the bridge's name, is"),
        ("libvirt", "kvm", kvm.OPTIONS, "`interface`, where tcpdump listens when QEMU cannot"),
        ("virtualbox", "virtualbox", virtualbox.OPTIONS, "`interface`, the host-only interface"),
        ("vsphere", "vsphere", vsphere.OPTIONS, "`interface`, the host's to the machines' network"),
    ],
)
def test_the_file_of_a_plugin_that_ships_shows_the_defaults(
    folder: str, name: str, options: tuple[Option, ...], what: str, tmp_path: Path
) -> None:
    text = page(f"plugins/cuckoo-machinery-{folder}/src/cuckoo_machinery_{folder}/{name}.conf")
    assert page(f"conf/{name}.conf") == text
    path = tmp_path / f"{name}.conf"
    path.write_text(text)
    ini = IniFile(path, path.name, Findings())
    assert ini.sections == [name]
    for option in options:
        assert ini.text(name, option.name, "it is missing") == option.default
    assert ini.text(name, "machines", "it is missing") == ""
    told = section(PAGE, f"[{name}]")
    assert f"`{ini.text(name, 'interface')}`" in told[told.index(what) :]


def test_the_ignored_keys_of_cuckoo_2_are_listed() -> None:
    text = section(PAGE, "Keys of Cuckoo 2 that are ignored")
    listed = {(row["File"], row["Section"]): codes(row["Keys"]) for row in rows(text)}
    assert listed == {
        (f"`conf/{file}.conf`", f"`[{name}]`"): keys.split()
        for (file, name), keys in INHERITED.items()
    }
    for name in INHERITED_SECTIONS:
        assert f"`[{name}]`" in text


def test_the_keys_of_a_vpn_are_documented() -> None:
    assert list(table(section(PAGE, "A VPN's section"))) == [
        field.name for field in dataclasses.fields(Vpn)
    ]


def test_the_keys_of_a_token_are_documented_and_shown(tmp_path: Path) -> None:
    found = table(section(PAGE, "conf/tokens.conf"))
    assert list(found) == list(tokens.KEYS)
    assert tuple(codes(found["rights"]["Allowed"])) == tuple(tokens.Rights)
    assert found["rate"]["Allowed"] == f"0 to {tokens.MAX_RATE}"
    shown = re.findall(r"^# (\w+) = ", default_conf("tokens.conf"), re.MULTILINE)
    assert shown == list(tokens.KEYS)


def test_nothing_but_the_documented_files_ships() -> None:
    shipped = {*CORE_FILES, "qemu.conf", "kvm.conf", "virtualbox.conf", "vsphere.conf"}
    shipped |= {"systemd", "yara"}
    assert {path.name for path in (ROOT / "conf").iterdir()} == shipped
