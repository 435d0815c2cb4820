"""Translates the server's calls into the hypervisor's.

Write each method that raises NotImplementedError. The docstrings of MachineryBackend say all that
is promised; these say what is easily missed. The server owns deadlines, retries and quarantine:
a backend translates, and tells the truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    BadConfig,
    Capability,
    MachineryBackend,
    MachineState,
)

T = TypeVar("T")

THREADS = 8
"""Calls of the binding that may be under way at once."""


class NamelessBackend(MachineryBackend):
    """The machines of one Nameless hypervisor. It keeps nothing of an analysis.

    For a method beyond the required ones (``screenshot``, ``reboot``, ``watch`` ...), override it
    and name its flag in ``capabilities``. One without its flag is never called.
    """

    capabilities = Capability.NONE

    def __init__(self, config: BackendConfig) -> None:
        """No I/O here: that is :meth:`open`'s."""
        super().__init__(config)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="nameless")

    async def open(self) -> None:
        """Connect, and clear away what an earlier process of this backend left behind.

        BadConfig is for what no retry can mend: it is told to the operator, and not tried again.
        A hypervisor that does not answer is BackendUnavailable: that is tried again by and by.
        """
        if not self.config.options["url"]:
            raise BadConfig("nameless: [nameless] url is empty; set it to where it answers")
        raise NotImplementedError("NamelessBackend.open is yet to be written")

    async def close(self) -> None:
        """Disconnect. Also after a failed open, and twice; raises nothing."""
        self._threads.shutdown(wait=False)

    async def labels(self) -> list[str]:
        """Every machine that the hypervisor has, whether configured or not.

        With a binding that blocks: ``return await self._call(binding.list_names)``.
        """
        raise NotImplementedError("NamelessBackend.labels is yet to be written")

    async def state(self, label: str) -> MachineState:
        """What the hypervisor says now, never what was known a moment ago.

        MachineNotFound for a label that it does not know, BackendUnavailable when it does not
        answer: never a guess.
        """
        raise NotImplementedError("NamelessBackend.state is yet to be written")

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        """Power off, restore, start: nothing of what the guest did before may be left.

        An empty ``snapshot`` means the current one. SnapshotNotFound where there is no such one.
        Some hypervisors leave a restored machine off: then start it. The server may cancel this
        at any moment; it asks for the state and calls power_off before it goes on.
        """
        raise NotImplementedError("NamelessBackend.restore_and_start is yet to be written")

    async def power_off(self, label: str) -> None:
        """Cut the power. A machine that is off already is a success."""
        raise NotImplementedError("NamelessBackend.power_off is yet to be written")

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what blocks in a thread; the binding's errors as those of the contract.

        A thread cannot be stopped. A cancelled call waits for its end, else it would still change
        the machine after the server has gone on.
        """
        work = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise
        except OSError as exc:  # and what your binding raises; keep its own words
            raise BackendUnavailable(f"{self.config.name}: {exc}") from exc
