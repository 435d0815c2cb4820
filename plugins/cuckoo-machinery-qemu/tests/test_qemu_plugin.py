"""How the plugin describes itself, and that its configuration file says the same."""

from __future__ import annotations

import configparser
from pathlib import Path

from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import API_VERSION, MachineryPlugin
from cuckoo_api.settings import init_cwd, load_settings
from cuckoo_machinery_qemu import plugin as module
from cuckoo_machinery_qemu.backend import QemuBackend

ROOT = Path(__file__).parents[3]
OWN_CONF = Path(__file__).parents[1] / "src/cuckoo_machinery_qemu/qemu.conf"


def registered() -> MachineryPlugin:
    """As the server finds it."""
    return load_plugins()["qemu"]


def test_the_server_finds_it_by_its_entry_point() -> None:
    plugin = registered()
    assert plugin == module.cuckoo_register_machinery()
    assert plugin.api_version <= API_VERSION
    backend = plugin.backend(_any_config())
    assert isinstance(backend, QemuBackend)


def _any_config():  # type: ignore[no-untyped-def]  # a configuration without machines
    from cuckoo_api.machinery import BackendConfig

    return BackendConfig(name="qemu", machines=(), state_dir=Path("nowhere"))


def test_both_copies_of_the_configuration_are_the_same() -> None:
    assert OWN_CONF.read_text() == (ROOT / "conf/qemu.conf").read_text()
    assert registered().default_conf == OWN_CONF.read_text()


def test_the_configuration_file_shows_every_option_with_its_default() -> None:
    shown = configparser.ConfigParser()
    shown.read_string(registered().default_conf)
    assert shown.sections() == ["qemu"]
    declared = {option.name: option.default for option in registered().options}
    assert dict(shown["qemu"]) == {
        **declared,
        "machines": "",
        "interface": "qemubr",
        "max_vmstartup_count": "0",
    }


def test_every_option_is_explained_and_its_default_allowed() -> None:
    for option in (*registered().options, *registered().machine_options):
        assert option.help.endswith(".")
        assert not option.choices or option.default in option.choices


def test_the_file_is_read_without_a_warning_and_a_slip_is_answered(tmp_path: Path) -> None:
    init_cwd(tmp_path, [registered()])
    assert load_settings(tmp_path, [registered()]).warnings == ()
    conf = tmp_path / "conf/qemu.conf"
    conf.write_text(conf.read_text().replace("\naccel =", "\nacel ="))
    [warning] = load_settings(tmp_path, [registered()]).warnings
    assert "acel" in warning
    assert "accel" in warning.replace("acel", "")
