"""docs/machinery.md: the example runs, and what it says of the contract is what the contract is."""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import inspect
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from docskit import block, blocks, codes, page, section, table

from cuckoo_api import machinery
from cuckoo_api.cli.plugin import write_plugin
from cuckoo_api.fleet import load_plugins
from cuckoo_api.fleet.deadlines import Deadlines
from cuckoo_api.machinery import (
    API_VERSION,
    BackendConfig,
    Capability,
    MachineryBackend,
    MachineryError,
    MachineryHooks,
    MachineryPlugin,
    MachineState,
)
from cuckoo_api.settings import Settings, load_settings
from cuckoo_api.testing.conformance import OPTIONAL_CALLS, Rig
from cuckoo_machinery_qemu.backend import QemuBackend
from folderplugin import fill_in
from supportmatrix import capabilities, with_matrix

pytestmark = pytest.mark.slow

PAGE = page("docs/machinery.md")

_folder = tempfile.TemporaryDirectory(prefix="folder-")
atexit.register(_folder.cleanup)  # pytest has no fixtures yet when it looks for the suite's tests
EXAMPLE = fill_in(write_plugin("folder", Path(_folder.name)))
sys.path[:0] = [str(EXAMPLE / "src")]
FOLDER = importlib.import_module("cuckoo_machinery_folder.plugin")


def conformance() -> ModuleType:
    """The page's own test."""
    path = EXAMPLE / "tests/test_conformance.py"
    made = ModuleType("folder_conformance")
    exec(compile(path.read_text(), path, "exec"), vars(made))
    return made


class TestTheExample(conformance().TestFolder):  # type: ignore[misc]  # made of text
    """The page's own test: the whole conformance suite on the page's own backend."""


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


# -- the example --------------------------------------------------------------------------------


def test_the_server_takes_the_example_as_a_plugin() -> None:
    plugin = load_plugins([FOLDER])["folder"]
    assert plugin.backend is FOLDER.FolderBackend
    assert plugin.api_version[0] == API_VERSION[0]


def test_the_example_s_configuration_is_read_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/cuckoo.conf").write_text("[cuckoo]\nmachinery = folder\n")
    plugin = load_plugins([FOLDER])["folder"]
    for text in (plugin.default_conf, block(PAGE, "conf/folder.conf")):
        (tmp_path / "conf/folder.conf").write_text(text)
        settings = load_settings(tmp_path, [plugin])
        assert settings.warnings == ()
    assert [m.ip for m in settings.machinery["folder"].machines] == ["127.0.0.1"]


def test_the_other_snippets_run(tmp_path: Path) -> None:
    given = {
        "Rig": Rig,
        "make": FOLDER.FolderBackend,
        "settings": Settings(cwd=tmp_path),
        "cuckoo_machinery_folder": sys.modules["cuckoo_machinery_folder"],
    }
    snippets = [b.text for b in blocks(PAGE) if b.language == "python" and not b.title]
    assert len(snippets) == 2
    for text in snippets:
        exec(text, dict(given))


# -- the contract -------------------------------------------------------------------------------


def test_every_hook_is_documented() -> None:
    assert set(table(section(PAGE, "The hook"))) == public(MachineryHooks)


@pytest.mark.parametrize(
    ("after", "kind"),
    [("A `MachineryPlugin` has", MachineryPlugin), ("`BackendConfig` is all", BackendConfig)],
)
def test_the_fields_of_what_plugin_and_core_exchange(after: str, kind: type) -> None:
    assert set(table(section(PAGE, "The hook").split(after)[1])) == names(kind)


def methods() -> Iterable[tuple[str, dict[str, str]]]:
    for call, row in table(section(PAGE, "The methods")).items():
        yield call.partition("(")[0], row


def test_every_method_is_documented_with_its_arguments_and_its_capability() -> None:
    documented = dict(methods())
    assert set(documented) == public(MachineryBackend)
    flags = {name: flag for flag, calls in OPTIONAL_CALLS.items() for name in calls}
    for name, row in documented.items():
        signature = inspect.signature(getattr(MachineryBackend, name))
        arguments = ", ".join(list(signature.parameters)[1:])
        assert codes(row["Method"]) == [f"{name}({arguments})"]
        assert codes(row["Capability"]) == ([str(flags[name].name)] if name in flags else [])
        required = name in MachineryBackend.__abstractmethods__
        assert required is (name not in flags)


def test_the_times_are_those_that_the_core_allows() -> None:
    deadlines = Deadlines()
    allowed = {
        "open": deadlines.open,
        "close": deadlines.close,
        "labels": deadlines.labels,
        "state": deadlines.state,
        "inspect": deadlines.inspect,
        "restore_and_start": deadlines.start,
        "power_off": deadlines.power_off,
        "screenshot": deadlines.screenshot,
        "dump_memory": deadlines.dump,
        **dict.fromkeys(("reboot", "start_capture", "stop_capture"), deadlines.order),
    }
    for name, row in methods():
        seconds = re.search(r"(\d+) s$", row["Within"])
        assert (seconds and float(seconds[1])) == allowed.get(name), name


def test_every_state_and_every_error_is_documented() -> None:
    assert set(table(section(PAGE, "States"))) == set(MachineState)
    errors = {
        name
        for name in machinery.__all__
        if isinstance(kind := getattr(machinery, name), type) and issubclass(kind, MachineryError)
    }
    assert set(table(section(PAGE, "Errors"))) == errors - {"MachineryError"}


def test_every_capability_is_explained() -> None:
    documented = table(section(PAGE, "Capabilities"))
    assert list(documented) == [flag.name for flag in Capability]


def test_the_support_matrix_is_what_the_backends_declare() -> None:
    assert with_matrix(PAGE) == PAGE, "write it anew with: python -m tests.supportmatrix"


def test_the_support_matrix_has_a_column_for_each_backend_in_the_tree() -> None:
    shown = table(section(PAGE, "Which backend has it"))
    assert list(shown) == [flag.name for flag in Capability]
    assert list(shown["REBOOT"])[1:] == [f"`{name}`" for name in capabilities()]
    can = {name for name, row in shown.items() if row["`qemu`"] == "yes"}
    assert can == {flag.name for flag in QemuBackend.capabilities}
    assert {cell for row in shown.values() for cell in list(row.values())[1:]} <= {"yes", "no"}


def test_every_field_of_a_rig_is_documented_with_its_default() -> None:
    documented = table(section(PAGE, "The conformance suite"))
    fields = {field.name: field for field in dataclasses.fields(Rig)}
    assert list(documented) == list(fields)
    for name, row in documented.items():
        field = fields[name]
        if field.default is not dataclasses.MISSING:
            shown = repr(field.default).replace("'", '"')
        elif field.default_factory is not dataclasses.MISSING:
            shown = repr(field.default_factory())
        else:
            assert row["Default"] == ""
            continue
        assert codes(row["Default"]) == [shown]
