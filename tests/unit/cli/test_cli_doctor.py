"""What is wrong is found and said, with what to do, and no secret."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.cli.doctor import data, network
from cuckoo_api.cli.main import main
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import load_network, load_settings
from cuckoo_api.settings.init import with_value
from rooterkit import noted_rooter

pytestmark = pytest.mark.slow


def configure(cwd: Path, section: str, key: str, value: str) -> None:
    path = cwd / "conf" / "cuckoo.conf"
    path.write_text(with_value(path.read_text(), section, key, value))


def findings(cwd: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[Any]]:
    code = main(["--cwd", str(cwd), "doctor", "--json", *words])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def levels(found: list[Any], about: str) -> set[str]:
    return {each["level"] for each in found if each["about"] == about}


@pytest.fixture(autouse=True)
def _a_port_that_is_free(cwd: Path) -> None:
    configure(cwd, "api", "port", "0")
    configure(cwd, "cuckoo", "freespace", "1")


def test_a_new_directory_fails_in_nothing(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(cwd, capsys)
    assert code == 0, found
    for about in ("configuration", "permissions", "disk", "database", "port"):
        assert levels(found, about) == {"OK"}, about
    assert levels(found, "machines") == {"WARN"}
    assert main(["--cwd", str(cwd), "doctor"]) == 0
    assert "what to do" in capsys.readouterr().out


def test_each_fault_is_said_and_no_secret(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(cwd, "cuckoo", "api_token", "the-token-of-all")
    configure(cwd, "cuckoo", "freespace", "2147483647")
    (cwd / "conf" / "cuckoo.conf").chmod(0o644)
    (cwd / "cuckoo.db").write_bytes(b"no database at all, but long enough to be read" * 100)
    with socket.create_server(("127.0.0.1", 0)) as other:
        configure(cwd, "api", "port", str(other.getsockname()[1]))
        code, found = findings(cwd, capsys)
    assert code == 1
    for about in ("disk", "database", "port"):
        assert levels(found, about) == {"FAIL"}, about
    assert levels(found, "permissions") == {"WARN"}
    assert "the-token-of-all" not in json.dumps(found)
    assert all(each["advice"] for each in found if each["level"] == "FAIL")


def test_what_does_not_confine_workers_here_is_said_with_what_to_do(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_api.confinement.landlock.version", lambda: 0)
    monkeypatch.setattr("cuckoo_api.confinement.seccomp.is_available", lambda: False)
    code, found = findings(cwd, capsys)
    said = {
        each["text"].partition(":")[0]: each for each in found if each["about"] == "confinement"
    }
    assert {name: each["level"] for name, each in said.items()} == {
        "limits": "OK",
        "seccomp": "WARN",
        "landlock": "WARN",
    }
    assert (code, said["landlock"]["advice"]) == (
        0,
        "Linux 5.13 has it; it needs landlock in the boot parameter lsm=",
    )


def test_faults_of_the_configuration_are_all_said(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(cwd, "api", "port", "many")
    configure(cwd, "cuckoo", "max_attempts", "0")
    code, found = findings(cwd, capsys)
    assert code == 1
    assert len([each for each in found if each["about"] == "configuration"]) == 2
    assert levels(found, "disk") == {"OK"}, "what does not depend on it is looked at all the same"


def test_beside_a_server_nothing_of_its_is_touched(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine_lock(cwd, is_server=True):
        code, found = findings(cwd, capsys)
        assert (code, levels(found, "server"), levels(found, "port")) == (0, {"OK"}, set())
        code, found = findings(cwd, capsys, "--deep")
        assert (code, levels(found, "machines")) == (1, {"FAIL"})


ROUTES = """
[vpn]
enabled = yes
vpns = up, down
[up]
interface = lo
[down]
interface = nowhere0
[rooter]
interfaces =
"""


async def test_rooter_and_vpns_are_looked_at_where_tasks_may_have_them(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(cwd, "cuckoo", "rooter", str(cwd / "rooter.sock"))
    (cwd / "conf" / "routing.conf").write_text(ROUTES)
    code, found = await asyncio.to_thread(findings, cwd, capsys)
    about = [(each["level"], each["text"]) for each in found if each["about"] == "rooter"]
    assert code == 1
    assert [level for level, _ in about] == ["FAIL", "FAIL"]
    assert "interfaces in conf/routing.conf is empty" in about[0][1]
    assert "No such file" in about[1][1]

    (cwd / "conf" / "routing.conf").write_text(ROUTES.replace("interfaces =", "interfaces = br0"))
    async with noted_rooter(load_network(cwd), cwd / "rooter.sock"):
        capsys.readouterr()
        code, found = await asyncio.to_thread(findings, cwd, capsys)
    assert (code, levels(found, "rooter"), levels(found, "vpn")) == (0, {"OK"}, {"OK", "WARN"})
    own = cwd.parent / "routing.conf"  # the rooter's own, which the server's account reads
    (cwd / "conf" / "routing.conf").rename(own)
    own.chmod(0o644)
    (cwd / "conf" / "routing.conf").symlink_to(own)
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    for access, level in ((True, "WARN"), (False, "OK")):
        monkeypatch.setattr(network.os, "access", lambda *_, access=access: access)
        async with noted_rooter(load_network(cwd), cwd / "rooter.sock"):
            seen = [each async for each in network.routes(load_settings(cwd, [], machinery=()))]
        assert next(each.level for each in seen if each.about == "rooter") == level
    assert "routing.conf" not in str([x.text for x in data.permissions(cwd) if "open to" in x.text])
    [down] = [each for each in found if each["text"].startswith("down is down")]
    assert down["advice"] == "cuckoo vpn check down"
