"""What looks at uploads, as a thread: a process takes longer to start than most tests."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from cuckoo_api.artefacts.keeper import serve
from cuckoo_api.artefacts.keepers import BLOCK


class KeeperThread:
    """In a process's place; it ends when it is hung up on."""

    def __init__(self, channel: socket.socket, folder: Path) -> None:
        self.pid = os.getpid()
        self._channel, self._folder = channel.dup(), folder
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    async def wait(self) -> None:
        await asyncio.to_thread(self._thread.join)

    def kill(self) -> None:
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with self._channel, suppress(OSError):
            serve(self._channel, self._folder, BLOCK)


async def start_thread(channel: socket.socket, folder: Path) -> KeeperThread:
    return KeeperThread(channel, folder)
