"""Who is believed to be the server, and what is told of one that cannot be used."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from vspherekit import (
    ONE,
    PASSWORD,
    Certificate,
    Make,
    Simulate,
    Site,
    Wire,
    certificate,
    config,
    told,
)

from cuckoo_api.machinery import BackendUnavailable, MachineState, Secret
from cuckoo_machinery_vsphere.datastore import download
from cuckoo_machinery_vsphere.session import Session
from cuckoo_machinery_vsphere.settings import read_server
from cuckoo_machinery_vsphere.tasks import Order

WRONG = Secret("wr0ng-s3cret")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of another authority, for the same address."""
    return certificate(tmp_path_factory.mktemp("foreign") / "foreign")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For another name."""
    return certificate(tmp_path_factory.mktemp("elsewhere") / "other", "DNS:other.example")


async def refused(make: Make, site: Site, **options: str) -> str:
    """The error's text; the password was not sent."""
    site.simulator.calls()
    with pytest.raises(BackendUnavailable) as caught:
        await make(site, **options)
    assert "Login" not in site.simulator.calls()
    assert PASSWORD not in told(caught.value)
    return str(caught.value)


async def accepted(make: Make, site: Site, **options: str) -> None:
    backend = await make(site, **options)
    assert await backend.state(ONE) is MachineState.POWEROFF


# -- the certificate ------------------------------------------------------------------------------


async def test_a_certificate_of_a_known_authority_is_believed(
    make: Make, simulate: Simulate
) -> None:
    await accepted(make, simulate())


async def test_one_of_another_authority_is_not(
    make: Make, simulate: Simulate, foreign: Certificate
) -> None:
    site = simulate()
    assert "not trusted" in await refused(make, site, ca_file=str(foreign.authority))


async def test_without_any_key_the_system_s_authorities_decide_also_on_loopback(
    make: Make, simulate: Simulate
) -> None:
    assert "not trusted" in await refused(make, simulate(), ca_file="")


async def test_one_for_another_name_is_not_believed(
    make: Make, simulate: Simulate, elsewhere: Certificate
) -> None:
    text = await refused(make, simulate(shown=elsewhere))
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in text


async def test_a_pinned_one_is_believed_whoever_signed_it_and_for_whatever_name(
    make: Make, simulate: Simulate, elsewhere: Certificate
) -> None:
    pin = elsewhere.thumbprint
    await accepted(make, simulate(shown=elsewhere), ca_file="", thumbprint=pin)


async def test_a_pin_may_be_written_as_openssl_does(make: Make, simulate: Simulate) -> None:
    site = simulate()
    pin = site.certificate.thumbprint.upper()
    pairs = ":".join(pin[at : at + 2] for at in range(0, 64, 2))
    await accepted(make, site, ca_file="", thumbprint=pairs)


async def test_another_certificate_than_the_pinned_one_is_shown_and_refused(
    make: Make, simulate: Simulate, foreign: Certificate
) -> None:
    site = simulate()
    text = await refused(make, site, ca_file="", thumbprint=foreign.thumbprint)
    assert f"its certificate has the SHA-256 thumbprint {site.certificate.thumbprint}" in text


async def test_no_certificate_is_checked_only_when_that_is_asked_for(
    make: Make, simulate: Simulate, elsewhere: Certificate
) -> None:
    site = simulate(shown=elsewhere)
    await refused(make, site)
    await accepted(make, site, ca_file="", unverified_ssl="yes")


@pytest.mark.parametrize("way", ["ca_file", "thumbprint"])
async def test_a_certificate_that_has_changed_is_refused_by_a_later_connection(
    way: str, make: Make, simulate: Simulate, site: Site, wire: Wire, foreign: Certificate
) -> None:
    keys = {"ca_file": ""}
    if way == "thumbprint":
        keys["thumbprint"] = site.certificate.thumbprint
    else:
        keys["ca_file"] = str(site.certificate.authority)
    backend = await make(site, port=wire.port, **keys)
    impostor = simulate(shown=foreign)
    impostor.simulator.calls()
    await wire.cut()
    wire.target = impostor.simulator.port
    await wire.mend()
    with pytest.raises(BackendUnavailable, match="certificate is not trusted"):
        await backend.state(ONE)
    assert impostor.simulator.calls() == {}


def test_files_are_fetched_with_the_same_checks(
    simulate: Simulate, foreign: Certificate, tmp_path: Path
) -> None:
    site, impostor = simulate(), simulate(shown=foreign)
    own = config(tmp_path, site.simulator.port, ca_file=str(site.certificate.authority)).options
    session = Session(read_server(own))
    away = read_server({**own, "port": str(impostor.simulator.port)})
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        download(session.login(), away, "[d] f/m.vmem", "DC0", tmp_path / "memory", Order())
    session.close()
    assert impostor.simulator.order("gets") is None
    assert not (tmp_path / "memory").exists()


# -- no server, no login --------------------------------------------------------------------------


@pytest.fixture
async def mute() -> AsyncIterator[int]:
    """A port that takes connections and says nothing."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.transport.abort()


@pytest.mark.parametrize("way", ["ca_file", "thumbprint"])
async def test_a_mute_server_is_given_up_after_the_time_that_is_set(
    way: str, make: Make, site: Site, mute: int
) -> None:
    keys = {"thumbprint": "ab" * 32, "ca_file": ""} if way == "thumbprint" else {}
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="it did not answer in time"):
        await make(site, port=mute, timeout="1", **keys)
    assert time.monotonic() - began < 4


async def test_a_server_that_falls_mute_is_given_up_in_the_time_of_the_contract(
    make: Make, site: Site, mute: int, wire: Wire
) -> None:
    backend = await make(site, port=wire.port, timeout="60")
    await wire.cut()
    wire.target = mute
    await wire.mend()
    with pytest.raises(BackendUnavailable, match=r"did not answer within 4.5 s"):
        await asyncio.wait_for(backend.state(ONE), 5)
    await wire.cut()


async def test_a_closed_port_is_told_as_such(make: Make, site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(BackendUnavailable, match="cannot be reached: Connection refused"):
            await make(site, port=unused.getsockname()[1])


async def test_something_else_on_the_port_is_told_as_such(make: Make, site: Site) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        with pytest.raises(BackendUnavailable, match="TLS: WRONG_VERSION_NUMBER"):
            await make(site, port=server.sockets[0].getsockname()[1])


async def test_a_refused_login_is_told_without_the_password(make: Make, site: Site) -> None:
    with capture_logs() as logs, pytest.raises(BackendUnavailable) as caught:
        await make(site, pwd=WRONG)
    assert "refuses the login of 'cuckoo@vsphere.local'" in str(caught.value)
    assert "\n" not in str(caught.value)
    for text in (told(caught.value), repr(caught.value), repr(logs)):
        assert WRONG not in text


def test_a_refused_login_is_not_tried_again_at_once_for_the_account_would_be_locked(
    site: Site, tmp_path: Path
) -> None:
    ca_file = str(site.certificate.authority)
    own = config(tmp_path, site.simulator.port, ca_file=ca_file, pwd=WRONG).options
    session = Session(read_server(own))
    with ThreadPoolExecutor(16) as pool:
        errors = list(pool.map(lambda _: failure(session), range(16)))
    assert all("refuses the login" in error for error in errors)
    assert site.simulator.calls()["Login"] == 1


def failure(session: Session) -> str:
    with pytest.raises(BackendUnavailable) as caught:
        session.login()
    return str(caught.value)
