"""What is printed for web servers. That they take it, and serve, is in tests/full."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server import deploy
from cuckoo_api.settings import ApiSection, CuckooSection, Settings


def values(ini: str) -> dict[str, str]:
    """The keys of the file, each of which is there once."""
    lines = [line for line in ini.splitlines() if line and line[0] not in ";["]
    pairs = [line.partition(" = ")[::2] for line in lines]
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_uwsgi_is_told_of_this_installation(settings: Settings) -> None:
    ini = values(deploy.uwsgi_conf(settings))
    me = pwd.getpwuid(os.getuid()).pw_name
    assert ini["env"] == f"CUCKOO_CWD={settings.cwd}"
    assert ini["virtualenv"] == sys.prefix
    assert ini["plugins"] == "python3"
    assert (ini["uid"], ini["chown-socket"]) == (me, f"{me}:www-data")


def test_outside_a_virtual_environment_none_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert "virtualenv" not in values(deploy.uwsgi_conf(settings))


def test_uwsgi_is_given_no_longer_queue_than_the_kernel_allows(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "somaxconn"
    limit.write_text("128\n")
    monkeypatch.setattr(deploy, "SOMAXCONN", limit)
    assert values(deploy.uwsgi_conf(settings))["listen"] == "128"


def test_what_uwsgi_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    assert "the one in /opt/python; install" in deploy.uwsgi_warning()
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(deploy, "PLUGINS", tmp_path)
    assert "install the package uwsgi-plugin-python3" in deploy.uwsgi_warning()
    (tmp_path / "python3_plugin.so").touch()
    assert deploy.uwsgi_warning() == ""


def test_nginx_asks_uwsgi_unless_it_is_given_a_socket(settings: Settings) -> None:
    site = deploy.nginx_conf(settings, "127.0.0.1", 8090)
    assert "uwsgi_pass _uwsgi_cuckoo_api;" in site
    assert "server unix:/run/uwsgi/app/cuckoo-api/socket" in site
    assert "listen 127.0.0.1:8090;" in site
    site = deploy.nginx_conf(settings, "::1", 80, Path("/run/cuckoo/api.sock"))
    assert "proxy_pass http://_http_cuckoo_api;" in site
    assert "server unix:/run/cuckoo/api.sock" in site
    assert "listen [::1]:80;" in site


def test_nginx_lets_through_what_the_api_takes(settings: Settings) -> None:
    settings = replace(settings, api=ApiSection(max_upload_size=5 << 20))
    site = deploy.nginx_conf(settings, "localhost", 8090)
    assert f"client_max_body_size {7 << 20};" in site


def test_nginx_is_not_put_where_the_api_would_refuse_to_listen(settings: Settings) -> None:
    bare = replace(settings, cuckoo=CuckooSection(machinery=(), api_token=""))
    with pytest.raises(ConfigError, match="without authentication"):
        deploy.nginx_conf(bare, "0.0.0.0", 8090)
    assert "listen 0.0.0.0:8090;" in deploy.nginx_conf(settings, "0.0.0.0", 8090)
    with pytest.raises(ConfigError, match="name one with -p"):
        deploy.nginx_conf(settings, "127.0.0.1", 0)
