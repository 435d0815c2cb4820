"""How the plugin describes itself, and that its configuration file says the same."""

from __future__ import annotations

import configparser
from pathlib import Path

from vboxkit import config_for

from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import API_VERSION, MachineryPlugin
from cuckoo_api.settings import init_cwd, load_settings
from cuckoo_machinery_virtualbox import plugin as module
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend

ROOT = Path(__file__).parents[3]
OWN_CONF = Path(__file__).parents[1] / "src/cuckoo_machinery_virtualbox/virtualbox.conf"


def registered() -> MachineryPlugin:
    """As the server finds it."""
    return load_plugins()["virtualbox"]


def test_the_server_finds_it_by_its_entry_point() -> None:
    plugin = registered()
    assert plugin == module.cuckoo_register_machinery()
    assert plugin.api_version <= API_VERSION
    backend = plugin.backend(config_for(Path("VBoxManage"), Path("nowhere")))
    assert isinstance(backend, VirtualBoxBackend)


def test_both_copies_of_the_configuration_are_the_same() -> None:
    assert OWN_CONF.read_text() == (ROOT / "conf/virtualbox.conf").read_text()
    assert registered().default_conf == OWN_CONF.read_text()


def test_the_configuration_file_shows_every_option_with_its_default() -> None:
    shown = configparser.ConfigParser()
    shown.read_string(registered().default_conf)
    assert shown.sections() == ["virtualbox"]
    declared = {option.name: option.default for option in registered().options}
    assert dict(shown["virtualbox"]) == declared | {"machines": "", "interface": "vboxnet0"}


def test_every_option_is_explained_and_its_default_allowed() -> None:
    for option in (*registered().options, *registered().machine_options):
        assert option.help.endswith(".")
        assert not option.choices or option.default in option.choices


def warnings(cwd: Path) -> tuple[str, ...]:
    return load_settings(cwd, [registered()], machinery=["virtualbox"]).warnings


def test_the_file_is_read_without_a_warning_and_a_slip_is_answered(tmp_path: Path) -> None:
    init_cwd(tmp_path, [registered()])
    assert warnings(tmp_path) == ()
    conf = tmp_path / "conf/virtualbox.conf"
    conf.write_text(conf.read_text().replace("\nmode =", "\nmoed ="))
    [warning] = warnings(tmp_path)
    assert "moed" in warning
    assert "did you mean 'mode'" in warning
