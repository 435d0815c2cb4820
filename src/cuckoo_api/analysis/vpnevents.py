"""Changes of VPNs as events, and as what may let tasks go on that wait for their route."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.task import now_text
from cuckoo_api.network.vpn import VpnState
from cuckoo_api.store import Store

log = structlog.get_logger()


class VpnEvents:
    """Writes them down one after the other."""

    def __init__(self, store: Store, *, wake: Callable[[], None]) -> None:
        self._store = store
        self._wake = wake
        self._last: asyncio.Task[None] | None = None

    def tell(self, state: VpnState, previous: str) -> None:
        """A VPN has another status."""
        data: dict[str, object] = {
            "name": state.name,
            "status": state.status,
            "previous": previous or None,
            "error": state.error,
            "time": now_text(),
        }
        self._last = asyncio.create_task(self._write(self._last, data))
        self._wake()

    async def close(self) -> None:
        """Wait until all is written."""
        if self._last is not None:
            await asyncio.wait({self._last})

    async def _write(self, before: asyncio.Task[None] | None, data: dict[str, object]) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            await self._store.events.add("vpn", data)
        except CuckooError as exc:
            log.warning("vpn.not_told", reason=exc.log)
