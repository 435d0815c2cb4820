"""The agent in this guest: it starts the analyzer, maybe in advance, and is told how it went."""

import os
import socket
from urllib.parse import urlencode


class AgentStatus:
    """The agent's ``/status`` on this machine.

    The key proves to the agent that a status comes from the analyzer: the sample is not told it,
    and so cannot end its own analysis with a forged status.
    """

    def __init__(self) -> None:
        self._key = os.environ.pop("CUCKOO_STATUS_KEY", "")
        self._port = int(os.environ.pop("CUCKOO_AGENT_PORT", "8000"))

    def post(self, status: str, description: str) -> bool:
        """Post a status. Returns False when the agent did not take it."""
        form = {"status": status, "description": description[:8000], "key": self._key}
        body = urlencode(form).encode("ascii")
        head = ("POST /status HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n"
                "Content-Type: application/x-www-form-urlencoded\r\n"
                "Content-Length: %d\r\n\r\n" % len(body)).encode("ascii")
        # the standard library's HTTP client would be a tenth of a second on an emulated processor
        with socket.socket() as connection:
            connection.settimeout(5)
            try:
                connection.connect(("127.0.0.1", self._port))
                connection.sendall(head + body)
                words = connection.recv(4096).split(None, 2)
            except OSError:
                return False  # the sample may have killed it; the exit code tells the rest
            return len(words) > 1 and words[1] == b"200"


class Standby:
    """An agent may start the analyzer before there is an analysis, to have it warm."""

    def __init__(self) -> None:
        handle = os.environ.pop("CUCKOO_STANDBY_FD", "")
        self._socket = socket.socket(fileno=int(handle)) if handle else None
        self.asked = handle != ""

    def wait(self) -> bool:
        """Say that all is prepared, and wait. Returns whether there is an analysis to run."""
        if self._socket is None:
            return True
        with self._socket as agent:
            agent.sendall(b"ready\n")
            return agent.recv(16) != b""
