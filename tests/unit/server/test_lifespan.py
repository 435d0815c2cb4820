"""What was opened last is closed first, also where the start fails half way."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
import structlog
from servekit import Server

from cuckoo_api.analysis.scheduler import Scheduler
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.fleet import Fleet
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.machinery import Capability, MachineConfig
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.results import ResultServer
from cuckoo_api.server import lifespan as module
from cuckoo_api.server.app import create_app
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import CuckooSection, MachinerySettings, Settings
from cuckoo_api.store import Store
from cuckoo_api.testing.fake import ALL, FakeHypervisor, fake_plugin

PARTS = (Store, Artefacts, Fleet, ResultServer, Scheduler)
"""In the order in which they are opened."""


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that were closed, as it happens."""
    names: list[str] = []

    def watch(part: Any) -> None:
        close = part.close

        async def noted(self: Any) -> None:
            names.append(part.__name__)
            await close(self)

        monkeypatch.setattr(part, "close", noted)

    for part in PARTS:
        watch(part)
    return names


async def run(settings: Settings) -> None:
    """Start and stop."""
    app = create_app(settings)
    async with module.lifespan(app, plugins=(), engine=True):
        assert app[SERVICE] is not None


async def test_what_was_opened_last_is_closed_first(settings: Settings, closed: list[str]) -> None:
    await run(settings)

    assert closed == ["Scheduler", "ResultServer", "Fleet", "Artefacts", "Store"]


def fail(*_: object, **__: object) -> Any:
    raise ConfigError(["no"])


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ((Store, "open"), []),
        ((Artefacts, "open"), ["Artefacts", "Store"]),
        ((Fleet, "open"), ["Fleet", "Artefacts", "Store"]),
        ((ResultServer, "open"), ["ResultServer", "Fleet", "Artefacts", "Store"]),
        ((Fleet, "recover"), ["ResultServer", "Fleet", "Artefacts", "Store"]),
        ((module, "recover"), ["ResultServer", "Fleet", "Artefacts", "Store"]),
        (
            (module, "AnalysisService"),
            ["Scheduler", "ResultServer", "Fleet", "Artefacts", "Store"],
        ),
    ],
    ids=lambda value: f"{value[0].__name__}.{value[1]}" if isinstance(value, tuple) else "",
)
async def test_a_start_that_fails_closes_what_it_had_opened(
    settings: Settings,
    closed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[Any, str],
    expected: list[str],
) -> None:
    monkeypatch.setattr(*broken, fail)
    with pytest.raises(ConfigError, match="no"):
        await run(settings)

    assert closed == expected
    with engine_lock(settings.cwd):
        pass  # it is free


async def test_a_part_that_does_not_close_keeps_no_other_open(
    settings: Settings, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResultServer, "close", fail)
    with pytest.raises(ConfigError, match="no"):
        await run(settings)

    assert closed == ["Scheduler", "Fleet", "Artefacts", "Store"]


async def test_the_guests_address_that_cannot_be_had_is_said_and_nothing_is_left(
    settings: Settings,
) -> None:
    async with FakeHypervisor() as world:
        world.add("one", with_guest=False)
        plugin = fake_plugin(world, capabilities=ALL & ~Capability.ADDRESS)
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            machine = MachineConfig(
                label="one", name="one", ip="127.0.0.9",
                resultserver_ip="127.0.0.1", resultserver_port=port,
            )  # fmt: skip
            fake = MachinerySettings(name="fake", options={}, machines=(machine,))
            settings = replace(
                settings,
                cuckoo=CuckooSection(machinery=("fake",), api_token="secret", freespace=0),
                machinery={"fake": fake},
            )
            with pytest.raises(ConfigError) as refusal:
                await Server(create_app(settings, plugins=[plugin])).start()
            [fault] = refusal.value.faults
            assert f"[resultserver]: cannot listen on 127.0.0.1:{port}: " in fault
            assert world.open_backends == world.watched == 0
        server = Server(create_app(settings, plugins=[plugin]))
        await server.start()  # the address is free now, and so is all else
        await server.stop()
        assert world.open_backends == world.watched == 0


async def test_a_machinery_without_a_plugin_is_named(settings: Settings) -> None:
    settings = replace(settings, cuckoo=CuckooSection(machinery=("nonesuch",), api_token="secret"))
    with pytest.raises(ConfigError, match="no plugin for 'nonesuch' could be loaded"):
        await run(settings)


async def test_the_settings_warnings_are_logged(settings: Settings) -> None:
    settings = replace(settings, warnings=("conf/cuckoo.conf [cuckoo] tpken: unknown",))
    with structlog.testing.capture_logs() as lines:
        await run(settings)

    assert [line["warning"] for line in lines if line["event"] == "settings"] == [
        "conf/cuckoo.conf [cuckoo] tpken: unknown"
    ]


async def test_what_does_not_confine_worker_processes_here_is_logged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_api.confinement.landlock.version", lambda: 0)
    with structlog.testing.capture_logs() as lines:
        await run(settings)

    missing = [line for line in lines if line["event"] == "confinement.missing"]
    assert "landlock" in [line["layer"] for line in missing]
    assert all(line["advice"] for line in missing)


async def test_nothing_is_opened_before_the_application_starts(settings: Settings) -> None:
    (settings.cwd / "cuckoo.db").unlink()
    create_app(settings)

    assert list(settings.cwd.iterdir()) == []
