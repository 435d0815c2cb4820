"""A session that ends is made anew by one login; what was ordered is not ordered again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyVmomi import vim
from vspherekit import ONE, SNAPSHOT, TWO, Make, Site, Wire, config

from cuckoo_api.machinery import BackendUnavailable, MachineState
from cuckoo_machinery_vsphere.backend import VsphereBackend
from cuckoo_machinery_vsphere.inventory import read_machines
from cuckoo_machinery_vsphere.session import Session
from cuckoo_machinery_vsphere.settings import read_server

RUNNING, OFF = MachineState.RUNNING, MachineState.POWEROFF
THREADS = 16


def end(site: Site, session: Session) -> None:
    """As vCenter does after half an hour in which nothing happened, or an administrator."""
    site.admin.end_session(session.login().cookie.partition("=")[2])


@pytest.fixture
def session(site: Site, tmp_path: Path) -> Iterator[Session]:
    own = config(tmp_path, site.simulator.port, ca_file=str(site.certificate.authority))
    session = Session(read_server(own.options))
    yield session
    session.close()


def name(session: Session, key: str) -> str:
    return str(session.read(lambda login: read_machines(login, [key], ["name"]))[key]["name"])


async def test_an_ended_session_is_noticed_by_nobody(backend: VsphereBackend, site: Site) -> None:
    for calls in (
        lambda: backend.state(ONE),
        lambda: backend.labels(),
        lambda: backend.inspect(ONE),
        lambda: backend.restore_and_start(ONE, SNAPSHOT),
        lambda: backend.power_off(ONE),
    ):
        end(site, backend._session)
        site.simulator.calls()
        await calls()
        assert site.simulator.calls()["Login"] == 1
    assert await backend.state(ONE) is OFF


def test_the_server_tells_of_it_by_leaving_properties_out_and_that_is_understood(
    session: Session, site: Site
) -> None:
    key = site.admin.machine(ONE)._GetMoId()
    login = session.login()
    end(site, session)
    with pytest.raises(vim.fault.NotAuthenticated):
        read_machines(login, [key], ["name"])
    assert name(session, key) == ONE


def test_sixteen_threads_that_find_it_ended_make_one_login(session: Session, site: Site) -> None:
    key = site.admin.machine(ONE)._GetMoId()
    together = threading.Barrier(THREADS)

    def ask(_: int) -> str:
        together.wait(10)
        return name(session, key)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(3):
            session.login()
            end(site, session)
            site.simulator.calls()
            assert set(pool.map(ask, range(THREADS))) == {ONE}
            assert site.simulator.calls()["Login"] == 1


async def test_a_session_that_ends_during_a_task_ends_no_start_and_reverts_once(
    backend: VsphereBackend, site: Site
) -> None:
    site.simulator.order("delay", millis=1500)
    starting = asyncio.create_task(backend.restore_and_start(ONE, SNAPSHOT))
    while not (calls := site.simulator.calls()).get("RevertToSnapshot_Task"):
        await asyncio.sleep(0.01)
    assert calls["RevertToSnapshot_Task"] == 1
    end(site, backend._session)
    await starting
    assert await backend.state(ONE) is RUNNING
    calls = site.simulator.calls()
    assert calls["Login"] == 1
    assert "RevertToSnapshot_Task" not in calls


async def test_an_order_that_was_refused_for_want_of_a_session_is_sent_again(
    backend: VsphereBackend, site: Site
) -> None:
    site.admin.snapshot(ONE, "off", running=False)
    site.simulator.order("call", "PowerOnVM_Task", fault="NotAuthenticated", times=1)
    site.simulator.calls()
    await backend.restore_and_start(ONE, "off")
    assert await backend.state(ONE) is RUNNING
    calls = site.simulator.calls()
    assert (calls["PowerOnVM_Task"], calls["Login"]) == (2, 1)


async def test_an_order_whose_answer_is_lost_is_not_sent_again(
    make: Make, site: Site, wire: Wire
) -> None:
    backend = await make(site, port=wire.port)
    site.admin.snapshot(ONE, "off", running=False)
    site.simulator.calls()
    site.simulator.order("call", "PowerOnVM_Task", millis=300)
    starting = asyncio.create_task(backend.restore_and_start(ONE, "off"))
    while not site.simulator.calls().get("PowerOnVM_Task"):
        await asyncio.sleep(0.01)
    await wire.drop()
    with pytest.raises(BackendUnavailable):
        await starting
    assert await backend.state(TWO) is OFF
    assert "PowerOnVM_Task" not in site.simulator.calls()
    await backend.power_off(ONE)
    assert await backend.state(ONE) is OFF


async def test_a_connection_that_broke_is_noticed_by_nobody_and_the_session_goes_on(
    make: Make, site: Site, wire: Wire
) -> None:
    backend = await make(site, port=wire.port)
    site.simulator.calls()
    for _ in range(3):
        assert await backend.state(ONE) is OFF
        await wire.cut()
        await wire.mend()
    await backend.restore_and_start(ONE, SNAPSHOT)
    assert "Login" not in site.simulator.calls()


async def test_closing_logs_out(make: Make, site: Site) -> None:
    backend = await make(site)
    session = backend._session
    key = session.login().cookie.partition("=")[2]
    await backend.close()
    assert site.simulator.calls()["Logout"] == 1
    with pytest.raises(vim.fault.NotFound):
        site.admin.end_session(key)
    with pytest.raises(BackendUnavailable, match="not open"):
        await backend.state(ONE)
    with pytest.raises(BackendUnavailable, match="the backend is closed"):
        session.login()
