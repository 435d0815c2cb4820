"""When to look at a machine: VirtualBox writes to a machine's folder whenever its state changes.

VBoxManage tells of no events. But the process of a running machine logs each change of state, the
kernel closes its log when it ends, however it ends, and VBoxSVC replaces the settings file when a
machine goes on or off. Each of these only says that the machine is worth a question; what its
state is, VirtualBox answers.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

from asyncinotify import Event, Inotify, Mask

from cuckoo_api.machinery import BackendUnavailable
from cuckoo_machinery_virtualbox.info import MachineInfo

GATHER = 0.25
"""Seconds in which news of a machine counts as one piece: a guest can make its log grow fast."""
LAST_LOOK = 1.0
"""Seconds after the last news for one more look: the log is written before VBoxSVC knows."""
LOOK_AT_ALL = 30.0
"""Seconds after which all are looked at: a folder may tell nothing, as on NFS."""

_NEWS = Mask.CREATE | Mask.MODIFY | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.DELETE | Mask.ONLYDIR


class Folders:
    """The machines' folders under watch, from ``async with`` to its end."""

    def __init__(self) -> None:
        self._labels: dict[Path, str] = {}
        self._news: set[str] = set()
        self._again: dict[str, float] = {}
        self._ring = asyncio.Event()
        self._all_due = asyncio.get_running_loop().time() + LOOK_AT_ALL

    async def __aenter__(self) -> Self:
        try:
            self._inotify = Inotify()
        except OSError as exc:
            raise BackendUnavailable(
                f"virtualbox: no folder can be watched: {exc}; see fs.inotify.max_user_instances"
            ) from exc
        self._reader = asyncio.create_task(self._read(), name="virtualbox-folders")
        self._reader.add_done_callback(lambda _: self._ring.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.wait({self._reader})
        self._inotify.close()

    def follow(self, label: str, info: MachineInfo) -> None:
        """Watch the machine's folders, as far as they are there and not watched yet."""
        for folder in (info.config.parent, info.logs):
            if folder in self._labels or not folder.is_dir():
                continue
            try:
                self._inotify.add_watch(folder, _NEWS)
            except OSError as exc:
                raise BackendUnavailable(
                    f"{label}: {folder} cannot be watched: {exc}; see fs.inotify.max_user_watches"
                ) from exc
            self._labels[folder] = label

    async def changed(self) -> set[str]:
        """Labels of machines to look at now; empty when it is time to look at all."""
        if self._reader.done():
            raise BackendUnavailable("virtualbox: its folders are watched no more") from (
                self._reader.exception()
            )
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min([self._all_due, *self._again.values()])):
                await self._ring.wait()
            await asyncio.sleep(GATHER)
            self._ring.clear()
        except TimeoutError:
            pass  # no news
        now = loop.time()
        late = {label for label, when in self._again.items() if when <= now}
        news, self._news = self._news, set()
        again = {label: when for label, when in self._again.items() if label not in late}
        self._again = again | dict.fromkeys(news, now + LAST_LOOK)
        if now < self._all_due:
            return news | late
        self._all_due = now + LOOK_AT_ALL
        return set()

    def tell(self, labels: set[str]) -> None:
        """There is news of these machines."""
        self._news |= labels
        self._ring.set()

    async def _read(self) -> None:
        async for event in self._inotify:
            self.tell(self._about(event))

    def _about(self, event: Event) -> set[str]:
        if event.watch is None:  # there was more than the kernel keeps
            return set(self._labels.values())
        folder = event.watch.path
        label = self._labels.get(folder, "")
        if Mask.IGNORED in event.mask:  # it is gone; one of this name may come again
            self._labels.pop(folder, None)
        return {label} - {""}
