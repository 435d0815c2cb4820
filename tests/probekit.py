"""Clients on bare sockets, to count what a restart costs: others hide a failure by trying again."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 30.0
"""Seconds until something is given up: a start on a busy machine takes some."""


class Probe:
    """Clients that ask without pause and try nothing twice: what fails is counted."""

    def __init__(self, family: int, address: Any, *, keep_alive: bool) -> None:
        self._family, self._address = family, address
        self._connection = b"keep-alive" if keep_alive else b"close"
        self.answers: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @contextmanager
    def at_work(self, clients: int) -> Iterator[None]:
        """So many clients ask while entered."""
        threads = [threading.Thread(target=self._ask_on_and_on) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more were answered."""
        wanted, deadline = self.answers["200"] + more, time.monotonic() + PATIENCE
        while self.answers["200"] < wanted:
            assert time.monotonic() < deadline, self.answers
            time.sleep(0.01)

    def _ask_on_and_on(self) -> None:
        connection: socket.socket | None = None
        while not self._stopped.is_set():
            try:
                if connection is None:
                    connection = socket.socket(self._family)
                    connection.settimeout(PATIENCE)
                    connection.connect(self._address)
                answer, closes = self._ask(connection)
            except OSError as exc:
                answer, closes = type(exc).__name__, True
            with self._lock:
                self.answers[answer] += 1
            if closes and connection is not None:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _ask(self, connection: socket.socket) -> tuple[str, bool]:
        """The status, or what went wrong, and whether the connection ends."""
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n" % self._connection
        )
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(65536)):
                return "cut off", True
            head += data
        head, _, body = head.lower().partition(b"\r\n\r\n")
        [length] = [
            int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"content-length")
        ]
        while len(body) < length:
            if not (data := connection.recv(65536)):
                return "cut off", True
            body += data
        return head.split()[1].decode(), b"connection: close" in head
