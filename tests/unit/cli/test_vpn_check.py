"""``cuckoo vpn check``: each step that does not hold is named, with what to do."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cuckoo_api.cli import vpn as module
from cuckoo_api.model.errors import BadInput
from cuckoo_api.settings import init_cwd, load_network
from rooterkit import NotedKernel, noted_rooter

pytestmark = pytest.mark.slow

CONF = """
[vpn]
enabled = yes
vpns = plain, silent, open, wg
[plain]
interface = lo
probe = 127.0.0.1:{port}
[silent]
interface = nowhere0
[open]
interface = lo
management = {management}
[wg]
interface = lo
type = wireguard
[rooter]
interfaces = guests0
"""


@pytest.fixture
async def management(tmp_path: Path) -> AsyncIterator[Path]:
    """OpenVPN's management, whose peer sends as long as ``tmp_path/mute`` is not there."""
    heard = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += not (tmp_path / "mute").exists()
        writer.write(b">INFO:OpenVPN Management Interface\r\n")
        while (line := await reader.readline()) and line != b"quit\n":
            if line == b"state\n":
                writer.write(b"1,CONNECTED,SUCCESS,10.8.0.2,203.0.113.7,1194,,\r\nEND\r\n")
            else:
                writer.write(b"TCP/UDP read bytes,%d\r\nEND\r\n" % heard)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, tmp_path / "management"):
        yield tmp_path / "management"


@pytest.fixture
async def cwd(tmp_path: Path, management: Path) -> AsyncIterator[Path]:
    where = tmp_path / "cwd"
    init_cwd(where, [])
    (where / "conf" / "cuckoo.conf").write_text(f"[cuckoo]\nrooter = {tmp_path / 'rooter'}\n")
    async with await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0) as answering:
        port = answering.sockets[0].getsockname()[1]
        (where / "conf" / "routing.conf").write_text(CONF.format(port=port, management=management))
        yield where


async def check(cwd: Path, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    arguments = argparse.Namespace(name=name, json=True)
    code = await module.check(arguments, cwd)
    steps = json.loads(capsys.readouterr().out.splitlines()[-1])
    said = [f"{'ok' if s['holds'] else 'no'} {s['name']}: {s['detail']}" for s in steps]
    arguments.json = False
    assert await module.check(arguments, cwd) == code
    shown = capsys.readouterr().out
    for step in steps:
        assert step["detail"].partition(",")[0][-12:] in shown or step["name"] == "tunnel"
    return code, said


async def test_what_answers_a_probe_is_proven(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = load_network(cwd)
    async with noted_rooter(network, network.socket):
        code, said = await check(cwd, "plain", capsys)
    assert (code, [line[:10] for line in said]) == (0, ["ok rooter:", "ok tunnel:", "ok answer:"])


async def test_without_a_rooter_no_guest_gets_there(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = await check(cwd, "plain", capsys)
    assert code == 1
    assert "start it with 'cuckoo rooter'" in said[0]
    assert said[2].startswith("ok answer")
    code, said = await check(cwd, "wg", capsys)
    assert (code, len(said)) == (1, 1), "nobody else may ask WireGuard"


async def test_a_missing_interface_is_named(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = await check(cwd, "silent", capsys)
    assert (code, said[1]) == (1, "no tunnel: there is no interface nowhere0 that is up")


async def test_without_a_probe_the_peers_next_sign_is_awaited(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "SILENCE", 0.1)
    network = load_network(cwd)
    async with noted_rooter(network, network.socket):
        code, said = await check(cwd, "open", capsys)
        assert (code, said[1][:33]) == (0, "ok tunnel: lo to 203.0.113.7:1194")
        (tmp_path / "mute").touch()
        code, said = await check(cwd, "open", capsys)
    assert (code, said[2]) == (1, "no answer: nothing came from the peer for 0 s")


async def test_a_handshake_alone_proves_nothing(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "SILENCE", 0.1)
    network, kernel = load_network(cwd), NotedKernel()
    async with noted_rooter(network, network.socket, kernel):
        kernel.known = [msgspec.structs.replace(kernel.known[0], handshake=int(time.time()))]
        code, said = await check(cwd, "wg", capsys)
        assert (code, said[2]) == (1, "no answer: nothing came from the peer for 0 s")


async def test_one_that_is_not_there_is_said_with_those_that_are(cwd: Path) -> None:
    with pytest.raises(BadInput, match="there is: plain, silent, open, wg"):
        await module.check(argparse.Namespace(name="vpn9", json=False), cwd)
