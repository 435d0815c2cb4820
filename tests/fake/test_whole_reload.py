"""A reload takes the configuration on whole or not at all, and disturbs nothing that runs."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import aiohttp
import pytest
import structlog
from fakekit import PATIENCE, Gate, Site
from routekit import LO, on_a_network, rooter
from structlog.testing import capture_logs

from cuckoo_api.http.keys import SERVICE, SWITCH
from cuckoo_api.model.errors import ConfigError, NotFound
from cuckoo_api.network.rooter import policy
from cuckoo_api.server import app as server_app
from cuckoo_api.server import lock, reload
from cuckoo_api.server.lock import ask_to_reload, engine_lock
from cuckoo_api.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _all_is_logged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = structlog.make_filtering_bound_logger(0)
    monkeypatch.setattr(reload, "log", structlog.wrap_logger(None, wrapper_class=everything))


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch, site: Site) -> asyncio.Queue[bool]:
    """How each reload ended; what is read is the site's settings."""
    ended: asyncio.Queue[bool] = asyncio.Queue()
    once, lifespan = reload.Reloader.reload, server_app.lifespan

    async def told(reloader: reload.Reloader) -> bool:
        done = await once(reloader)
        ended.put_nowait(done)
        return done

    monkeypatch.setattr(reload.Reloader, "reload", told)
    monkeypatch.setattr(
        server_app,
        "lifespan",
        lambda app, **given: lifespan(app, **given | {"reread": lambda: site.settings}),
    )
    return ended


async def reloaded(site: Site, reloads: asyncio.Queue[bool]) -> bool:
    assert ask_to_reload(site.settings.cwd) == os.getpid()
    async with asyncio.timeout(PATIENCE):
        return await reloads.get()


async def test_machines_tokens_and_limits_are_taken_on_while_an_analysis_runs(
    site: Site, reloads: asyncio.Queue[bool]
) -> None:
    gate = Gate()
    site.add("one", gate)
    await site.start()
    running = await site.submit()
    await site.running("one")
    site.add("two")
    site.configure("cuckoo", api_token="another")
    site.configure("api", legacy_statuses=True, port=1)
    with capture_logs() as lines:
        assert await reloaded(site, reloads)
    [done] = [line for line in lines if line["event"] == "reload.done"]
    assert {"cuckoo", "api", "machinery"} <= set(done["changed"])
    held = [line["setting"] for line in lines if line["event"] == "reload.needs_restart"]
    assert held == ["[api] port"]
    assert site.app is not None
    assert site.app[SERVICE].settings.api.legacy_statuses
    assert site.world.running() == ["one"]

    await site.get("/tasks/list", status=401)
    assert site._session is not None
    await site._session.close()
    site._session = aiohttp.ClientSession(site.url, headers={"Authorization": "Bearer another"})
    gate.open.set()
    assert (await site.until(running, "reported"))["errors"] == []
    assert (await site.analyse(machine="two"))["machine"] == "two"
    await site.free()


async def test_a_faulty_configuration_changes_nothing_and_all_its_faults_are_logged(
    site: Site, reloads: asyncio.Queue[bool]
) -> None:
    site.add("one")
    await site.start()
    good = site.settings
    site.settings = replace(good, cuckoo=replace(good.cuckoo, machinery=("fake", "nonesuch")))
    with capture_logs() as lines:
        assert not await reloaded(site, reloads)
    [refused] = [line for line in lines if line["event"] == "reload.refused"]
    assert "nonesuch" in refused["faults"][0]
    assert site.app is not None
    assert site.app[SERVICE].settings is good
    assert (await site.analyse())["machine"] == "one"
    await site.free()


async def test_files_that_do_not_parse_are_refused_with_every_fault() -> None:
    def read() -> Settings:
        raise ConfigError(["first", "second"])

    reloader = reload.Reloader(Settings(cwd=lock.Path("/")), read, [])
    with capture_logs() as lines:
        assert not await reloader.reload()
    assert lines[0]["faults"] == ["first", "second"]


async def test_only_a_server_is_asked(site: Site) -> None:
    cwd = site.settings.cwd
    with pytest.raises(NotFound):
        ask_to_reload(cwd)
    with engine_lock(cwd), pytest.raises(NotFound):
        ask_to_reload(cwd)  # a command that the signal would end
    await site.start()
    assert site.app is not None
    assert site.app[SWITCH].reload is not None
    await site.stop()
    with pytest.raises(NotFound):
        ask_to_reload(cwd)


async def test_other_routes_are_taken_on_while_a_guest_has_one(
    site: Site, reloads: asyncio.Queue[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "check_address", lambda _: None)  # guests are on loopback
    gate = Gate()
    on_a_network(site, gate)
    async with rooter(site, LO) as kernel:
        await site.start()
        running = await site.submit(options="route=vpn0")
        await site.running("one")
        site.settings = replace(site.settings, vpns={"vpn9": replace(LO, name="vpn9")})
        assert await reloaded(site, reloads)
        assert (await site.get("/vpn/status"))["vpns"] == {"vpn9": True}
        with pytest.raises(AssertionError, match=r"vpn0.*not offered.*vpn9"):
            await site.submit(options="route=vpn0")
        assert kernel.open, "it is still led, as long as the rooter itself was told nothing"
        gate.open.set()
        assert (await site.until(running, "reported"))["route"] == "vpn0"
