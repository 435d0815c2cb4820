"""The processes of one working directory wake each other, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cuckoo_api.analysis import doorbell
from cuckoo_api.analysis.doorbell import Doorbell

pytestmark = pytest.mark.slow

Heard = asyncio.Event
Enter = Callable[..., Awaitable[tuple[Doorbell, Heard]]]


@pytest.fixture
async def enter(tmp_path: Path) -> AsyncIterator[Enter]:
    """A process's bell, and what is set when it rings."""
    bells = []

    async def make(*, engine: bool = False, cwd: Path = tmp_path) -> tuple[Doorbell, Heard]:
        bell, heard = Doorbell(cwd), asyncio.Event()
        bell.open(heard.set, engine=engine)
        bells.append(bell)
        return bell, heard

    yield make
    for bell in bells:
        bell.close()


async def rung(*heard: Heard) -> None:
    async with asyncio.timeout(5):
        await asyncio.gather(*(event.wait() for event in heard))
    for event in heard:
        event.clear()


async def test_each_process_wakes_all_others_but_not_itself(enter: Enter) -> None:
    engine, engine_heard = await enter(engine=True)
    one, one_heard = await enter()
    _two, two_heard = await enter()
    one.ring()
    await rung(engine_heard, two_heard)
    engine.ring()
    await rung(one_heard, two_heard)
    assert not engine_heard.is_set()


async def test_another_directory_hears_nothing(enter: Enter, tmp_path: Path) -> None:
    here, heard = await enter(engine=True)
    _there, foreign = await enter(engine=True, cwd=tmp_path / "other")
    other, _ = await enter()
    other.ring()
    await rung(heard)
    assert not foreign.is_set()
    assert here is not other


async def test_a_bell_that_was_given_up_is_the_next_one_s(enter: Enter) -> None:
    engine, heard = await enter(engine=True)
    engine.close()
    engine.close()
    _engine, heard = await enter(engine=True)
    api, _ = await enter()
    api.ring()
    await rung(heard)


async def test_nobody_there_is_no_error_and_many_rings_are_one(enter: Enter) -> None:
    api, _ = await enter()
    for _ in range(5000):
        api.ring()
    _engine, heard = await enter(engine=True)
    for _ in range(5000):
        api.ring()
    await rung(heard)


async def test_who_finds_no_free_bell_can_still_ring(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "BELLS", 2)
    _engine, heard = await enter(engine=True)
    _first, first_heard = await enter()
    second, second_heard = await enter()
    second.ring()
    await rung(heard, first_heard)
    assert not second_heard.is_set()
