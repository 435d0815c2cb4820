"""The systemd units: systemd takes them, and they allow little."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cuckoo_api.cli import main
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server import units as module
from cuckoo_api.server.units import FILES, units, write
from cuckoo_api.settings import ApiSection, Settings

pytestmark = pytest.mark.slow

SYSTEM = "usr/local/lib/systemd/system"
EXPOSURE = {
    "cuckoo-api.service": 2.0,
    "cuckoo-engine.service": 2.2,
    "cuckoo-rooter.service": 2.0,
    "cuckoo-backup.service": 1.0,
}
"""By `systemd-analyze security`, 10 being everything; each must be below."""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that is installed."""
    path = tmp_path / "bin" / "cuckoo"
    path.parent.mkdir()
    path.symlink_to("/bin/true")
    monkeypatch.setattr(sys, "argv", [str(path), "api"])
    return path


@pytest.fixture
def folder(tmp_path: Path, program: Path) -> Path:
    """The files, below a folder."""
    write(units(Settings(cwd=Path("/var/lib/cuckoo"))), tmp_path)
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def values(path: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", path.read_text(), re.MULTILINE)


def test_systemd_finds_no_fault_in_them(folder: Path) -> None:
    found = sorted((folder / SYSTEM).iterdir())
    assert len(found) == len(FILES) - 3
    done = analyze("verify", "--man=no", *map(str, found))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fault_would_be_found(folder: Path) -> None:
    unit = folder / SYSTEM / "cuckoo-api.service"
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHome=maybe"))
    assert "Failed to parse protect home value" in analyze("verify", "--man=no", str(unit)).stderr


@pytest.mark.parametrize("name", EXPOSURE)
def test_a_service_is_exposed_to_little(folder: Path, name: str) -> None:
    done = analyze("security", "--offline=yes", str(folder / SYSTEM / name))
    [score] = re.findall(rf"exposure level for {name}: ([\d.]+)", done.stdout)
    assert 0 < float(score) < EXPOSURE[name], done.stdout


def test_every_service_is_in_the_list(folder: Path) -> None:
    assert {path.name for path in (folder / SYSTEM).glob("*.service")} == set(EXPOSURE)


def test_the_accounts_and_folders_can_be_made(folder: Path) -> None:
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\n")
    done = subprocess.run(
        ["systemd-sysusers", "--root", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [account] = [line.split(":") for line in (folder / "etc/passwd").read_text().splitlines()
                 if line.startswith("cuckoo:")]  # fmt: skip
    assert account[5:] == ["/var/lib/cuckoo", "/usr/sbin/nologin"]
    assert "\ncuckoo-rooter:x:" in (folder / "etc/passwd").read_text()
    assert "kvm:x:" in (folder / "etc" / "group").read_text()
    subprocess.run(["systemd-tmpfiles", "--root", str(folder), "--create"], check=True)
    made = folder / "var" / "lib" / "cuckoo"
    assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o700, int(account[2]))
    assert (folder / "etc" / "cuckoo").stat().st_uid == 0


def test_paths_address_and_account_are_those_of_the_installation(
    settings: Settings, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_owner", lambda _: "analyst")
    settings = replace(settings, api=ApiSection(host="::1", port=9000))
    texts = units(settings)
    api, engine = (texts[f"{SYSTEM}/cuckoo-{name}.service"] for name in ("api", "engine"))
    assert f"ExecStart={program} --cwd {settings.cwd} api --no-engine\n" in api
    assert f"ExecStart={program} --cwd {settings.cwd} engine --port 8091 --drain 300\n" in engine
    assert "User=analyst\n" in api
    assert f"ReadWritePaths={settings.cwd}\n" in engine
    assert "ListenStream=[::1]:9000\n" in texts[f"{SYSTEM}/cuckoo-api.socket"]
    assert "etc/sysusers.d/cuckoo.conf" not in texts  # it is there
    rooter = texts[f"{SYSTEM}/cuckoo-rooter.service"]
    assert f"{program} rooter --conf /etc/cuckoo/routing.conf --group analyst\n" in rooter
    assert "User=cuckoo-rooter\nSupplementaryGroups" not in rooter.replace("#", "")
    assert "User=cuckoo-rooter\n" in rooter
    assert "\nGroup=analyst\n" in rooter
    assert f"d {settings.cwd} 0700 analyst - -" in texts["etc/tmpfiles.d/cuckoo.conf"]
    assert not [path for path, text in texts.items() if "/opt/cuckoo" in text]


def test_an_installation_in_a_home_is_not_hidden_from_itself(program: Path) -> None:
    text = units(Settings(cwd=Path("/home/me/.cuckoo")))[f"{SYSTEM}/cuckoo-api.service"]
    assert "ProtectHome=read-only\n" in text


def test_a_path_that_systemd_would_read_otherwise_is_refused(program: Path) -> None:
    with pytest.raises(ConfigError, match="'/var/lib/my cuckoo': a path for systemd"):
        units(Settings(cwd=Path("/var/lib/my cuckoo")))


def test_the_command_prints_them_or_writes_them(
    tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cwd = ["--cwd", str(tmp_path / "to-come")]
    assert main([*cwd, "api", "--systemd"]) == 0
    printed = capsys.readouterr().out
    for path in FILES:
        assert f"# /{path}\n" in printed
    assert main([*cwd, "api", "--systemd", str(tmp_path / "root")]) == 0
    wrote = capsys.readouterr().out.splitlines()
    assert wrote == [f"wrote {tmp_path / 'root' / path}" for path in FILES]
    assert (tmp_path / "root" / SYSTEM / "cuckoo.target").read_text() in printed
