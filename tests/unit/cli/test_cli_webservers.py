"""``cuckoo api --nginx`` and ``--uwsgi`` print, and do nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.cli.main import main
from cuckoo_api.server import deploy

pytestmark = pytest.mark.slow


def test_nginx_listens_where_the_server_would(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cwd", str(cwd), "api", "--nginx"]) == 0
    assert "listen 127.0.0.1:8090;" in capsys.readouterr().out
    where = ["-H", "192.0.2.1", "-p", "80", "--socket", "/run/cuckoo/api.sock"]
    assert main(["--cwd", str(cwd), "api", "--nginx", *where]) == 0
    shown = capsys.readouterr()
    assert "listen 192.0.2.1:80;" in shown.out
    assert "server unix:/run/cuckoo/api.sock" in shown.out
    assert shown.err == ""


def test_what_uwsgi_cannot_run_is_said_beside_its_file(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "DEBIANS", Path("/nowhere"))
    assert main(["--cwd", str(cwd), "api", "--uwsgi"]) == 0
    shown = capsys.readouterr()
    assert f"env = CUCKOO_CWD={cwd}\n" in shown.out
    assert shown.err.startswith("warning: uWSGI's plugin runs Debian's own Python")


def test_one_at_a_time(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--cwd", str(cwd), "api", "--nginx", "--uwsgi"])
    assert "not allowed with argument --nginx" in capsys.readouterr().err


def test_without_a_working_directory_there_is_nothing_to_print(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cwd", str(tmp_path / "none"), "api", "--uwsgi"]) == 2
    assert "is no working directory yet" in capsys.readouterr().err
