"""cuckoo plugin new: a package that is whole, says what is missing, and overwrites nothing."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from cuckoo_api.cli.main import main
from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import BackendConfig, BadConfig
from cuckoo_api.settings import load_settings

pytestmark = pytest.mark.slow


def new(into: Path, name: str = "acme") -> Path:
    assert main(["plugin", "new", name, "--into", str(into)]) == 0
    return into / f"cuckoo-machinery-{name}"


def test_it_is_named_throughout(tmp_path: Path) -> None:
    made = new(tmp_path)
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "src/cuckoo_machinery_acme/__init__.py",
        "src/cuckoo_machinery_acme/acme.conf",
        "src/cuckoo_machinery_acme/backend.py",
        "src/cuckoo_machinery_acme/plugin.py",
        "src/cuckoo_machinery_acme/py.typed",
        "tests/conftest.py",
        "tests/test_conformance.py",
        "tests/test_plugin.py",
    }
    assert not [name for name in files if "nameless" in (made / name).read_text().lower()]
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"cuckoo_api": {"acme": "cuckoo_machinery_acme.plugin"}}


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin's module, as an installed one is found."""
    monkeypatch.syspath_prepend(new(tmp_path) / "src")
    module = importlib.import_module("cuckoo_machinery_acme.plugin")
    for name in list(sys.modules):
        if name.startswith("cuckoo_machinery_acme"):
            monkeypatch.delitem(sys.modules, name)  # the next test makes another
    return module


async def test_what_is_yet_to_be_written_says_so(acme: ModuleType, tmp_path: Path) -> None:
    plugin = load_plugins([acme])["acme"]
    with pytest.raises(BadConfig, match=r"\[acme\] url is empty"):
        await plugin.backend(BackendConfig("acme", (), tmp_path, {"url": ""})).open()

    backend = plugin.backend(BackendConfig("acme", (), tmp_path, {"url": "acme:///"}))
    for call in (
        backend.open(),
        backend.labels(),
        backend.state("one"),
        backend.restore_and_start("one", "clean"),
        backend.power_off("one"),
    ):
        with pytest.raises(NotImplementedError, match=f"AcmeBackend.{call.__name__} is yet to be"):
            await call
    await backend.close()
    await backend.close()


def test_the_configuration_that_it_comes_with_is_read_without_a_warning(
    acme: ModuleType, tmp_path: Path
) -> None:
    plugin = load_plugins([acme])["acme"]
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "cuckoo.conf").write_text("[cuckoo]\nmachinery = acme\n")
    text = plugin.default_conf.replace("machines =", "machines = one").replace("# [one]", "[one]")
    for key in ("label", "platform", "ip", "snapshot"):
        text = text.replace(f"# {key} =", f"{key} =")
    (conf / "acme.conf").write_text(text)
    settings = load_settings(tmp_path, [plugin])
    assert settings.warnings == ()
    assert [m.label for m in settings.machinery["acme"].machines] == ["one"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = new(tmp_path)
    (made / "README.md").write_text("mine")
    assert main(["plugin", "new", "acme", "--into", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"cuckoo: {made} exists; nothing was written\n"
    assert (made / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "why"),
    [("qemu", "a machinery 'qemu' is installed"), ("routing", "conf/routing.conf is the server's")],
)
def test_a_name_that_is_taken_is_refused(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", "new", name, "--into", str(tmp_path)]) == 1
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "Acme", "a-b", "a_b", "1a", "../a", "é", "a" * 33])
def test_a_name_that_could_not_be_one_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plugin", "new", name, "--into", str(tmp_path)])
    assert end.value.code == 2
    assert "all lower case" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_text

    def full(path: Path, *given: object, **more: object) -> int:
        if path.name == "plugin.py":
            raise OSError(28, "No space left on device")
        return write(path, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["plugin", "new", "acme", "--into", str(tmp_path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
