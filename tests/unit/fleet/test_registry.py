"""Plugins as they are installed: distributions with entry points, some of them broken."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cuckoo_api.fleet import load_plugins, registry
from cuckoo_api.machinery import MachineryPlugin
from cuckoo_api.testing.fake import FakeHypervisor, fake_plugin

GOOD = """
from cuckoo_api.machinery import MachineryBackend, MachineryPlugin, hookimpl

@hookimpl
def cuckoo_register_machinery():
    return MachineryPlugin(name="{name}", api_version={version}, backend=MachineryBackend)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make an installed distribution of one module and its entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", entry_points)  # looked for anew

    def install(module: str, source: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}_dist-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-dist\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[cuckoo_api]\n{module} = {module}\n")

    return install


def load(*extra: object) -> tuple[dict[str, MachineryPlugin], dict[str, str]]:
    """What was loaded, and why each other plugin was refused, for those made here."""
    with capture_logs() as logs:
        plugins = load_plugins(extra)
    refused = {
        entry["plugin"].split()[0]: entry["reason"]
        for entry in logs
        if entry["event"] == "plugin.refused"
    }
    return plugins, refused


def test_an_installed_plugin_is_found(install) -> None:
    install("machinery_good_a", GOOD.format(name="acme", version=(1, 7)))
    plugins, refused = load()
    assert plugins["acme"].api_version == (1, 7)
    assert refused == {}


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("machinery_bad_import", "import no_such_binding", "No module named 'no_such_binding'"),
        ("machinery_bad_syntax", "def", "SyntaxError"),
        ("machinery_bad_empty", "", "it has no hook cuckoo_register_machinery()"),
        (
            "machinery_bad_typo",
            (
                "from cuckoo_api.machinery import hookimpl\n"
                "@hookimpl\ndef cuckoo_register_machinary(): ...\n"
            ),
            "cuckoo_register_machinary",
        ),
        (
            "machinery_bad_arguments",
            (
                "from cuckoo_api.machinery import hookimpl\n"
                "@hookimpl\ndef cuckoo_register_machinery(settings): ...\n"
            ),
            "settings",
        ),
        (
            "machinery_bad_raise",
            (
                "from cuckoo_api.machinery import hookimpl\n"
                "@hookimpl\ndef cuckoo_register_machinery(): raise RuntimeError('no licence')\n"
            ),
            "RuntimeError: no licence",
        ),
        (
            "machinery_bad_answer",
            (
                "from cuckoo_api.machinery import hookimpl\n"
                "@hookimpl\ndef cuckoo_register_machinery(): return 'acme'\n"
            ),
            "returned str, not MachineryPlugin",
        ),
        (
            "machinery_bad_version",
            GOOD.format(name="acme2", version=(2, 0)),
            "'acme2' was made for contract 2.0, this is 1.1",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_the_rest_work(
    install, module: str, source: str, reason: str
) -> None:
    install(module, source)
    # sorts after the broken one
    good = f"machinery_good_{module}"
    install(good, GOOD.format(name="acme", version=(1, 0)))
    plugins, refused = load(fake_plugin(FakeHypervisor()))
    assert {"acme", "fake"} <= plugins.keys()
    assert refused.keys() == {module}
    assert reason in refused[module]


def test_a_name_is_given_once(install) -> None:
    install("machinery_twice_a", GOOD.format(name="acme", version=(1, 0)))
    install("machinery_twice_b", GOOD.format(name="acme", version=(1, 1)))
    plugins, refused = load()
    assert plugins["acme"].api_version == (1, 0)
    assert refused == {"machinery_twice_b": "another plugin has registered the machinery 'acme'"}


def test_extra_plugins_come_first(install) -> None:
    install("machinery_fake_rival", GOOD.format(name="fake", version=(1, 1)))
    plugins, refused = load(fake_plugin(FakeHypervisor()))
    assert plugins["fake"].api_version == (1, 1)
    assert refused.keys() == {"machinery_fake_rival"}
