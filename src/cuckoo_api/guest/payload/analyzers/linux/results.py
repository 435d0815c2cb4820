"""The result server's protocol: one TCP connection for each log, stream or file."""

import errno
import socket
import threading
import time
from typing import BinaryIO, Iterable, Iterator

CHUNK = 256 * 1024
MAX_LINE = 4000


class ResultServer:
    """The host's result server, as address and port."""

    def __init__(self, ip: str, port: int) -> None:
        self._address = (ip, port)

    def connect(self, head: bytes) -> socket.socket:
        """A connection on which the command's lines were sent. Raises OSError."""
        # by number: a name would have to be looked up, and the sample sees the resolver
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        connection = socket.socket(family)
        connection.settimeout(10)
        try:
            connection.connect(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(head)
        except OSError:
            connection.close()
            raise
        return connection

    def stream(self, destination: str) -> "Stream":
        """A file of the analysis that is written while it grows."""
        return Stream(self.connect(b"FILE 2\n" + file_lines(destination, "", "")))

    def upload(self, destination: str, source: BinaryIO, path: str, pids: str, limit: int) -> int:
        """Send a file, at most ``limit`` bytes of it. Returns how many were sent."""
        return self.send(destination, path, pids, _pieces(source, limit))

    def send(self, destination: str, path: str, pids: str, pieces: Iterable[bytes]) -> int:
        """Send a file that is made meanwhile. Returns how many bytes were sent. Raises OSError."""
        connection = self.connect(b"FILE 2\n" + file_lines(destination, path, pids))
        sent = 0
        try:
            for data in pieces:
                connection.sendall(data)
                sent += len(data)
        finally:
            connection.close()
        return sent


class Stream:
    """An open connection for growing data. A host that stops reading costs the data, no more."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.lost = False

    def write(self, data: bytes) -> None:
        """Send, or drop the data when the connection is lost."""
        if self.lost:
            return
        try:
            self._connection.sendall(data)
        except OSError:
            self.lost = True

    def close(self) -> None:
        self._connection.close()


class Log:
    """analysis.log: one line for each event, also from several threads."""

    def __init__(self, server: ResultServer) -> None:
        self._stream = Stream(server.connect(b"LOG\n"))
        self._lock = threading.Lock()

    def info(self, text: str) -> None:
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        self._write("WARNING", text)

    def error(self, text: str) -> None:
        self._write("ERROR", text)

    def close(self) -> None:
        self._stream.close()

    def _write(self, level: str, text: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
        line = "%s,%03d [analyzer] %s: %s\n" % (stamp, int(now % 1 * 1000), level, text)
        with self._lock:
            self._stream.write(line.encode("utf-8", "replace"))


def file_lines(destination: str, path: str, pids: str) -> bytes:
    """The three lines after ``FILE 2``. Raises OSError for a path that would not fit on a line."""
    lines = [line.encode("utf-8", "replace") for line in (destination, path, pids)]
    if any(b"\n" in line or b"\0" in line or len(line) > MAX_LINE for line in lines):
        raise OSError(errno.EINVAL, "not to be named in the protocol", path)
    return b"".join(line + b"\n" for line in lines)


def _pieces(source: BinaryIO, limit: int) -> Iterator[bytes]:
    while limit > 0:
        data = source.read(min(CHUNK, limit))
        if not data:
            return
        limit -= len(data)
        yield data
