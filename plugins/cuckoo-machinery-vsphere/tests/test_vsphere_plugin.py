"""How the plugin describes itself, and how it reads its configuration."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from vspherekit import PASSWORD, USER, config

from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import API_VERSION, BadConfig, MachineryPlugin
from cuckoo_api.settings import init_cwd, load_settings
from cuckoo_machinery_vsphere import plugin as module
from cuckoo_machinery_vsphere.backend import VsphereBackend
from cuckoo_machinery_vsphere.settings import Server, read_server

ROOT = Path(__file__).parents[3]
OWN_CONF = Path(__file__).parents[1] / "src/cuckoo_machinery_vsphere/vsphere.conf"


def registered() -> MachineryPlugin:
    """As the server finds it."""
    return load_plugins()["vsphere"]


def test_the_server_finds_it_by_its_entry_point(tmp_path: Path) -> None:
    plugin = registered()
    assert plugin == module.cuckoo_register_machinery()
    assert plugin.api_version <= API_VERSION
    assert isinstance(plugin.backend(config(tmp_path, 443)), VsphereBackend)


def test_the_configuration_file_shows_every_option_with_its_default() -> None:
    assert OWN_CONF.read_text() == (ROOT / "conf/vsphere.conf").read_text()
    assert registered().default_conf == OWN_CONF.read_text()
    shown = configparser.ConfigParser()
    shown.read_string(registered().default_conf)
    assert shown.sections() == ["vsphere"]
    declared = {option.name: option.default for option in registered().options}
    core = {"machines": "", "interface": "eth0", "max_vmstartup_count": "8"}
    assert dict(shown["vsphere"]) == declared | core


def test_the_file_is_read_without_a_warning_and_its_password_is_secret(tmp_path: Path) -> None:
    init_cwd(tmp_path, [registered()])
    core = tmp_path / "conf/cuckoo.conf"
    core.write_text(core.read_text().replace("\nmachinery = qemu", "\nmachinery = vsphere"))
    assert load_settings(tmp_path, [registered()]).warnings == ()
    conf = tmp_path / "conf/vsphere.conf"
    conf.write_text(conf.read_text().replace("\npwd =", f"\npwd = {PASSWORD}"))
    settings = load_settings(tmp_path, [registered()])
    assert settings.machinery["vsphere"].options["pwd"] == PASSWORD
    assert PASSWORD not in repr(settings)


def server(folder: Path, **options: str) -> Server:
    return read_server({**config(folder, 443).options, **options})


def test_user_and_password_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("# of the sandbox\nuser = me\npwd = a = b \n")
    file.chmod(0o600)
    found = server(tmp_path, user="", pwd="", credentials=str(file))
    assert (found.user, found.pwd) == ("me", "a = b")
    assert "a = b" not in repr(found)
    file.chmod(0o604)
    with pytest.raises(BadConfig, match=r"may be read by everybody; chmod 600"):
        server(tmp_path, user="", pwd="", credentials=str(file))


def test_all_faults_are_told_at_once_and_no_password(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        server(
            tmp_path, host="", port="x", user=USER, credentials="/nowhere", ca_file="/neither",
            thumbprint="ab" * 20, unverified_ssl="yes", timeout="0", task_timeout="-1",
        )  # fmt: skip
    text = str(caught.value)
    for fault in (
        "host is empty",
        "port = 'x'; allowed: 1 to 65535",
        "timeout = '0'; allowed: 1 to 600",
        "task_timeout = '-1'",
        "that is SHA-1, which is no proof any more",
        "ca_file and thumbprint and unverified_ssl = yes are set; choose one",
        "ca_file = /neither cannot be used: No such file",
        "pwd and credentials are set",
        "credentials = /nowhere cannot be read",
    ):
        assert fault in text
    assert PASSWORD not in text
    assert "\n" not in text


def test_without_a_password_nothing_is_tried(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="user or pwd is missing"):
        server(tmp_path, pwd="")
