"""Another configuration while machines work: which backends are opened anew, and when."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from cuckoo_api.fleet.deadlines import backoff
from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.fleet.slots import Slot
from cuckoo_api.machinery import BackendConfig
from cuckoo_api.model.errors import CuckooError

log = structlog.get_logger()

FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
"""Seconds between attempts where the store fails."""

Left = dict[str, str | None]
"""Machines that may run because of us, with the reasons of their quarantines."""


class Exchange:
    """Brings the open backends to the wanted ones.

    A backend is told of all its machines when it is made, and is opened once: that is its contract.
    So a machinery that is configured otherwise gives out no machine any more, is closed when its
    last task has ended, and opened anew. The others are not disturbed. What is wanted may change
    meanwhile, also back to what is there.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        hypervisors: Sequence[Hypervisor],
        *,
        shut: Callable[[Hypervisor], Awaitable[Left]],
        bring_in: Callable[[Sequence[BackendConfig], Left], Awaitable[None]],
    ) -> None:
        """``shut`` closes one whose machines are all free; ``bring_in`` opens others."""
        self.wanted: Mapping[str, BackendConfig] = {}
        self.news = asyncio.Event()
        """Set when a machine was released, or something else is wanted."""
        self._slots = slots
        self._hypervisors = hypervisors
        self._shut = shut
        self._bring_in = bring_in
        self._left: Left = {}

    def adopt(self, hypervisor: Hypervisor) -> bool:
        """Take on what the backend does not look at; whether there was anything, and it is all."""
        wanted = self.wanted.get(hypervisor.name)
        if (
            wanted is None
            or wanted == hypervisor.config
            or _seen(wanted) != _seen(hypervisor.config)
        ):
            return False
        hypervisor.config = wanted
        return True

    def hold(self) -> None:
        """From now on, give out no machine whose backend has to be closed."""
        old = self._outdated()
        for slot in self._slots.values():
            slot.held = slot.held or slot.hypervisor in old
        self.news.set()

    async def run(self) -> None:
        """Return once everything is as it is wanted, however long machines are at work."""
        failures = 0
        while True:
            self.news.clear()
            old = self._outdated()
            for slot in self._slots.values():
                slot.held = slot.hypervisor in old
            if any(slot.taken for slot in self._slots.values() if slot.held):
                await self.news.wait()
                continue
            if not old and not self._missing():
                return
            try:
                for hypervisor in old:
                    self._left |= await self._shut(hypervisor)
                    log.info("machinery.closed", machinery=hypervisor.name)
                if missing := self._missing():
                    await self._bring_in(missing, self._left)
                    log.info("machinery.opened", machinery=[config.name for config in missing])
                self._left, failures = {}, 0
            except CuckooError as exc:
                failures += 1
                log.warning("machinery.not_exchanged", reason=exc.log)
                await asyncio.sleep(backoff(FIRST_PAUSE, LAST_PAUSE, failures))

    def _outdated(self) -> list[Hypervisor]:
        return [hv for hv in self._hypervisors if self.wanted.get(hv.name) != hv.config]

    def _missing(self) -> list[BackendConfig]:
        there = {hypervisor.name for hypervisor in self._hypervisors}
        return [config for name, config in self.wanted.items() if name not in there]


def _seen(config: BackendConfig) -> BackendConfig:
    """As the backend sees it: a machine's tags and platform are the core's business."""
    return dataclasses.replace(
        config,
        machines=tuple(dataclasses.replace(m, tags=(), platform="") for m in config.machines),
    )
