#!/usr/bin/env python3
"""The guest agent: the HTTP service through which the sandbox prepares and watches a guest.

It speaks the agent protocol of Cuckoo 2 on TCP 8000, needs nothing but Python 3.6 or newer, and
is one file so that it can be copied into any guest. Usage: ``agent.py [HOST [PORT]]``.

One thread serves every connection, each by a generator that is resumed when its socket is ready.
With no thread about, ``/execpy`` may fork this warm process instead of starting an interpreter:
on an emulated CPU that saves a second per analysis.

Once pinned, the agent answers its controller only; a program inside the guest may still post a
status, and only with the key once the running analyzer has shown that it knows it.
"""

import hashlib
import hmac
import importlib
import json
import os
import platform
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import zipfile
from typing import Any, BinaryIO, Callable, Dict, Generator, List, Optional, Tuple, Union
from urllib.parse import parse_qsl, unquote

VERSION = "1.0"
FEATURES = ["execpy", "execute", "pinning", "logs", "largefile", "unicodepath", "statuskey",
            "analysis"]
PRELOAD = ("base64", "configparser", "contextlib", "datetime", "fcntl", "grp", "http.client",
           "pwd", "queue", "resource", "runpy", "selectors", "stat", "struct", "urllib.request")
KEY_VARIABLE = "CUCKOO_STATUS_KEY"
PORT_VARIABLE = "CUCKOO_AGENT_PORT"
STANDBY_VARIABLE = "CUCKOO_STANDBY_FD"

HEAD_LIMIT = 16 * 1024
FIELD_LIMIT = 1024 * 1024
OUTPUT_LIMIT = 64 * 1024
CHUNK = 256 * 1024
CONNECTIONS = 64
STRANGERS = 8
CONTROLLER_IDLE = 600.0
STRANGER_IDLE = 10.0

REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
           405: "Method Not Allowed", 411: "Length Required", 413: "Payload Too Large",
           431: "Request Header Fields Too Large", 500: "Internal Server Error"}

# compiled once, before a snapshot is taken
LENGTH = re.compile(r"[0-9]{1,18}\Z")
BOUNDARY = re.compile(r'boundary="?([^";,]{1,200})"?')
DISPOSITION = re.compile(r"(?im)^content-disposition:(.*)$")
PARAMETER = re.compile(r';\s*(\w+)(\*?)=(?:"((?:\\.|[^"\\])*)"|([^;\s]*))')
ESCAPED = re.compile(r"\\(.)")

READ, WRITE, CHILD = "read", "write", "child"
Steps = Generator[Any, Any, Any]


class HttpError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = dict(more, message=message, error_code=status)


class Disconnected(Exception):
    """The peer is gone; nobody waits for an answer."""


class InChild(BaseException):
    """Raised in a forked child, so that the server's loop ends there and the script runs."""


class Script:
    """A Python file to run: what ``/execpy`` asks for."""

    def __init__(self, path: str, cwd: Optional[str], environ: Dict[str, str]) -> None:
        self.path = path
        self.cwd = cwd
        self.environ = environ
        self.stdout: BinaryIO = tempfile.TemporaryFile()
        self.stderr: BinaryIO = tempfile.TemporaryFile()


class Child:
    """A started process, forked or spawned, and where its output goes."""

    def __init__(self, pid: int, process: Optional["subprocess.Popen[bytes]"],
                 stdout: BinaryIO, stderr: BinaryIO) -> None:
        self.pid = pid
        self.process = process
        self.stdout = stdout
        self.stderr = stderr
        self.code: Optional[int] = None
        self.output = ("", "")

    def poll(self) -> Optional[int]:
        """The exit code, negative for a signal, or None while it runs."""
        if self.code is None and self.process is not None:
            self.code = self.process.poll()
        elif self.code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 1 << 8
            if pid:
                self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        return self.code

    def finish(self) -> Tuple[str, str]:
        """The last part of what it wrote to standard output and error, once it has ended."""
        if not self.stdout.closed:
            with self.stdout, self.stderr:
                self.output = _tail(self.stdout), _tail(self.stderr)
        return self.output


class Standby:
    """The installed analyzer, started in advance: it has done what needs no sample, and waits.

    A snapshot taken then holds it, so that an analysis begins with one message to it.
    """

    def __init__(self, path: str, key: str) -> None:
        self.path = path
        self.key = key
        self.ours, self.theirs = socket.socketpair()
        self.child: Optional[Child] = None

    def script(self, environ: Dict[str, str]) -> Script:
        self.theirs.set_inheritable(True)
        more = dict(environ, **{STANDBY_VARIABLE: str(self.theirs.fileno())})
        return Script(self.path, os.path.dirname(self.path), more)

    def wait_ready(self) -> bool:
        """Wait until it is prepared; False when it failed or takes too long."""
        self.theirs.close()
        self.ours.settimeout(10)
        try:
            return self.ours.recv(16) == b"ready\n"
        except OSError:
            return False

    def release(self) -> None:
        with self.ours:
            self.ours.sendall(b"go\n")


class Connection:
    """One client: its socket, what it sent and is not yet used, and the generator serving it."""

    def __init__(self, sock: socket.socket, peer: str,
                 serve: Callable[["Connection"], Steps]) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.peer = peer
        self.buffer = bytearray()
        self.want = READ
        self.last = time.monotonic()
        self.steps = serve(self)

    def receive(self) -> Steps:
        """Wait for bytes and append them to the buffer. Raises Disconnected at the end."""
        while True:
            try:
                data = self.sock.recv(CHUNK)
            except BlockingIOError:
                yield READ
                continue
            if not data:
                raise Disconnected
            self.last = time.monotonic()
            self.buffer += data
            return

    def take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def send(self, data: bytes) -> Steps:
        view = memoryview(data)
        while view:
            try:
                sent = self.sock.send(view)
            except BlockingIOError:
                yield WRITE
                continue
            self.last = time.monotonic()
            view = view[sent:]


class Request:
    """A request whose head was read. ``parse`` reads the body into ``form`` and ``files``."""

    def __init__(self, connection: Connection, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise HttpError(400, "Not an HTTP/1 request")
        self.connection = connection
        self.peer = connection.peer
        self.method = words[0]
        self.path = words[1].split("?")[0]
        self.headers: Dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                self.headers[name.strip().lower()] = value.strip()
        asked = self.headers.get("connection", "").lower()
        self.keep_alive = asked != "close" and (words[2] != "HTTP/1.0" or asked == "keep-alive")
        self.left = self._length()
        self.form: Dict[str, str] = {}
        self.files: Dict[str, str] = {}

    def _length(self) -> int:
        if "transfer-encoding" in self.headers:
            raise HttpError(411, "A body needs a Content-Length")
        text = self.headers.get("content-length", "0")
        if not LENGTH.match(text):
            raise HttpError(400, "Content-Length is not a number")
        return int(text)

    def read(self) -> Steps:
        """The next bytes of the body; empty at its end."""
        if not self.left:
            return b""
        if not self.connection.buffer:
            yield from self.connection.receive()
        data = self.connection.take(min(self.left, CHUNK))
        self.left -= len(data)
        return data

    def drain(self) -> Steps:
        while (yield from self.read()):
            pass

    def parse(self) -> Steps:
        kind = self.headers.get("content-type", "")
        if kind.lower().startswith("multipart/form-data"):
            match = BOUNDARY.search(kind)
            if not match:
                raise HttpError(400, "A multipart body needs a boundary")
            yield from Multipart(self, match.group(1).encode("latin-1")).parse()
            return
        if self.left > FIELD_LIMIT:
            raise HttpError(413, "The form is too large")
        data = bytearray()
        while self.left:
            data += yield from self.read()
        self.form = dict(parse_qsl(data.decode("utf-8", "surrogateescape"), keep_blank_values=True))

    def field(self, name: str, message: str) -> str:
        value = self.form.get(name)
        if not value:
            raise HttpError(400, message)
        return value

    def flag(self, name: str) -> bool:
        return self.form.get(name, "no").lower() not in ("", "0", "no", "false", "off")

    def upload(self, name: str, message: str) -> str:
        if name not in self.files:
            raise HttpError(400, message)
        return self.files[name]

    def close(self) -> None:
        """Remove the uploads that no handler took."""
        for path in self.files.values():
            if os.path.exists(path):
                os.unlink(path)


class Multipart:
    """Reads a multipart body piece by piece: files go to temporary files, fields to the form."""

    def __init__(self, request: Request, boundary: bytes) -> None:
        self._request = request
        self._mark = b"\r\n--" + boundary
        # the first boundary has no line before it; with one added, all look alike
        self._data = bytearray(b"\r\n")

    def _more(self) -> Steps:
        piece = yield from self._request.read()
        if not piece:
            raise HttpError(400, "The multipart body ends too early")
        self._data += piece

    def _until_mark(self, write: Callable[[bytes], Any]) -> Steps:
        while True:
            at = self._data.find(self._mark)
            if at >= 0:
                write(bytes(self._data[:at]))
                del self._data[:at + len(self._mark)]
                return
            safe = len(self._data) - len(self._mark) + 1
            if safe > 0:
                write(bytes(self._data[:safe]))
                del self._data[:safe]
            yield from self._more()

    def parse(self) -> Steps:
        yield from self._until_mark(lambda data: None)
        while True:
            while len(self._data) < 2:
                yield from self._more()
            if self._data.startswith(b"--"):
                return
            yield from self._part()

    def _part(self) -> Steps:
        while b"\r\n\r\n" not in self._data:
            if len(self._data) > HEAD_LIMIT:
                raise HttpError(431, "The head of a part is too large")
            yield from self._more()
        at = self._data.index(b"\r\n\r\n")
        head = bytes(self._data[:at]).decode("utf-8", "surrogateescape")
        del self._data[:at + 4]
        disposition = DISPOSITION.search(head)
        parameters = _parameters(disposition.group(1)) if disposition else {}
        name = parameters.get("name", "")
        if "filename" in parameters or name in ("file", "zipfile"):
            yield from self._file(name)
        else:
            yield from self._field(name)

    def _file(self, name: str) -> Steps:
        handle, path = tempfile.mkstemp(prefix="upload-")
        previous = self._request.files.get(name)
        self._request.files[name] = path
        if previous:
            os.unlink(previous)
        with os.fdopen(handle, "wb") as file:
            yield from self._until_mark(file.write)

    def _field(self, name: str) -> Steps:
        value = bytearray()

        def write(data: bytes) -> None:
            if len(value) + len(data) > FIELD_LIMIT:
                raise HttpError(413, "A form field is too large")
            value.extend(data)

        yield from self._until_mark(write)
        self._request.form[name] = value.decode("utf-8", "surrogateescape")


class Reply:
    """What a handler answers: JSON, or a file to stream."""

    def __init__(self, message: str = "", **fields: Any) -> None:
        self.status = 200
        self.body: Dict[str, Any] = dict(fields, message=message)
        self.file: Optional[BinaryIO] = None


class Agent:
    """The state of the guest as the agent tells it, and one method for each route."""

    def __init__(self, analyzer: str) -> None:
        self.port = 0
        self.analyzer = analyzer
        self.digest = folder_digest(analyzer)
        self.standby: Optional[Standby] = None
        self.status = "init"
        self.description = ""
        self.client_ip: Optional[str] = None
        self.key = ""
        self.key_shown = False
        self.running: Optional[Child] = None
        self.output = ("", "")
        self.stopping = False
        self.routes: Dict[Tuple[str, str], Callable[[Request], Any]] = {}
        for name in dir(self):
            if name.startswith(("get_", "post_")):
                method, _, path = name.partition("_")
                self.routes[method.upper(), "/" + path.replace("index", "")] = getattr(self, name)

    def admit(self, request: Request) -> None:
        """Raise unless this peer may ask for this."""
        if self.client_ip in (None, request.peer):
            return
        if not _loopback(request.peer) or (request.method, request.path) != ("POST", "/status"):
            raise HttpError(403, "The agent is pinned to another address")

    def handler(self, request: Request) -> Callable[[Request], Any]:
        found = self.routes.get((request.method, request.path))
        if found is not None:
            return found
        known = [method for method, path in self.routes if path == request.path]
        raise HttpError(405 if known else 404, "No such method" if known else "No such route")

    def reap(self, child: Child) -> None:
        """Note the end of the script that ran asynchronously."""
        self.output = child.finish()
        if child is not self.running:
            return
        self.running = None
        if self.status == "running" and child.code == 0:
            self.status = "complete"
        elif self.status == "running":
            self.status = "failed"
            self.description = "exit code %s: %s" % (child.code, self.output[1][-4000:])

    # -- the guest

    def get_index(self, request: Request) -> Reply:
        installed = {"digest": self.digest, "folder": self.analyzer} if self.digest else None
        return Reply("Cuckoo Agent!", version=VERSION, features=FEATURES, analyzer=installed,
                     temporary=tempfile.gettempdir())

    def get_status(self, request: Request) -> Reply:
        return Reply("Analysis status", status=self.status, description=self.description)

    def post_status(self, request: Request) -> Reply:
        status = request.field("status", "No status has been provided")
        knows = bool(self.key) and hmac.compare_digest(
            request.form.get("key", "").encode("utf-8", "replace"), self.key.encode())
        if self.key_shown and not knows and request.peer != self.client_ip:
            raise HttpError(403, "The status belongs to the running analyzer")
        self.key_shown = self.key_shown or knows
        self.status = status[:64]
        self.description = request.form.get("description", "")[:FIELD_LIMIT // 16]
        return Reply("Analysis status updated")

    def get_logs(self, request: Request) -> Reply:
        return Reply("Agent logs", stdout=self.output[0], stderr=self.output[1])

    def get_system(self, request: Request) -> Reply:
        return Reply("System", system=platform.system())

    def get_environ(self, request: Request) -> Reply:
        return Reply("Environment variables", environ=dict(os.environ))

    def get_path(self, request: Request) -> Reply:
        return Reply("Agent path", filepath=os.path.abspath(__file__))

    def get_pinning(self, request: Request) -> Reply:
        if self.client_ip is not None:
            raise HttpError(500, "Agent has already been pinned to an IP!")
        self.client_ip = request.peer
        return Reply("Successfully pinned Agent", client_ip=request.peer)

    def get_kill(self, request: Request) -> Reply:
        self.stopping = True
        return Reply("Quit the Cuckoo Agent")

    # -- files

    def post_mkdir(self, request: Request) -> Reply:
        path = request.field("dirpath", "No dirpath has been provided")
        mode = request.form.get("mode", str(0o777))
        if not LENGTH.match(mode):
            raise HttpError(400, "The mode is not a number")
        with _errors("Error creating directory"):
            os.makedirs(path, int(mode))
        return Reply("Successfully created directory")

    def post_mktemp(self, request: Request) -> Reply:
        with _errors("Error creating temporary file"):
            handle, path = tempfile.mkstemp(*_temporary(request))
            os.close(handle)
        return Reply("Successfully created temporary file", filepath=path)

    def post_mkdtemp(self, request: Request) -> Reply:
        with _errors("Error creating temporary directory"):
            path = tempfile.mkdtemp(*_temporary(request))
        return Reply("Successfully created temporary directory", dirpath=path)

    def post_store(self, request: Request) -> Reply:
        path = request.field("filepath", "No filepath has been provided")
        _place(request.upload("file", "No file has been provided"), path)
        return Reply("Successfully stored file")

    def post_retrieve(self, request: Request) -> Reply:
        path = request.field("filepath", "No filepath has been provided")
        reply = Reply()
        try:
            reply.file = open(path, "rb")
        except OSError as error:
            raise HttpError(404, "Cannot read the file: %s" % error.strerror)
        return reply

    def post_extract(self, request: Request) -> Reply:
        path = request.field("dirpath", "No dirpath has been provided")
        upload = request.upload("zipfile", "No zip file has been provided")
        with _errors("Error extracting zip file"), zipfile.ZipFile(upload) as archive:
            archive.extractall(path)
        return Reply("Successfully extracted zip file")

    def post_remove(self, request: Request) -> Reply:
        path = request.field("path", "No path has been provided")
        if not os.path.lexists(path):
            raise HttpError(404, "Path provided does not exist")
        with _errors("Error removing file or directory"):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
                return Reply("Successfully deleted directory")
            os.unlink(path)
        return Reply("Successfully deleted file")

    # -- programs

    def post_execute(self, request: Request) -> Steps:
        command = request.field("command", "No command has been provided")
        shell = request.flag("shell")
        words: Union[str, List[str]] = command
        if not shell and os.name == "posix":
            words = shlex.split(command)
        with _errors("Error executing command"):
            child = _spawn(words, shell, request.form.get("cwd") or None, {})
        return (yield from self._finish(request, child))

    def post_execpy(self, request: Request) -> Steps:
        path = request.field("filepath", "No Python file has been provided")
        cwd = request.form.get("cwd") or None
        if not os.path.isfile(path) or not os.path.isdir(cwd or "."):
            raise HttpError(400, "No such Python file or cwd")
        with _errors("Error executing command"):
            child = self._from_standby(path)
            if child is None:
                script = Script(path, cwd, self.new_key())
                if hasattr(os, "fork"):
                    child = yield script
                else:
                    child = _spawn([sys.executable, path], False, cwd, script.environ)
        # the installed analyzer knows the key; another one shows first that it does
        self.key_shown = os.path.dirname(path) == self.analyzer
        if request.flag("async"):
            self.status, self.description, self.running = "running", "", child
        return (yield from self._finish(request, child))

    def post_analysis(self, request: Request) -> Steps:
        """All that begins an analysis by the installed analyzer: a request each would take longer.

        Pins the agent, stores ``conf`` beside the analyzer and ``file``, if any, as ``filepath``.
        """
        conf = request.field("conf", "No configuration has been provided")
        if not self.digest:
            raise HttpError(404, "No analyzer is installed")
        if "file" in request.files:
            _place(request.files["file"], request.field("filepath", "No filepath"))
        path = os.path.join(self.analyzer, "analysis.conf")
        with _errors("Error storing file"), open(path, "wb") as file:
            file.write(conf.encode("utf-8", "surrogateescape"))
        self.client_ip = request.peer
        script = os.path.join(self.analyzer, "analyzer.py")
        request.form.update({"filepath": script, "cwd": self.analyzer, "async": "yes"})
        return (yield from self.post_execpy(request))

    def new_key(self) -> Dict[str, str]:
        """A fresh key, and the environment of the script that is to know it."""
        self.key = os.urandom(16).hex()
        return {KEY_VARIABLE: self.key, PORT_VARIABLE: str(self.port)}

    def _from_standby(self, path: str) -> Optional[Child]:
        standby, self.standby = self.standby, None
        if standby is None or standby.path != path or standby.child is None:
            return None
        if standby.child.poll() is not None:
            return None
        standby.release()
        self.key = standby.key
        return standby.child

    def _finish(self, request: Request, child: Child) -> Steps:
        if request.flag("async"):
            yield child  # from now on the loop watches it
            return Reply("Successfully spawned command", process_id=child.pid)
        yield child
        while child.code is None:
            yield CHILD
        stdout, stderr = child.finish()
        return Reply("Successfully executed command", stdout=stdout, stderr=stderr,
                     exit_code=child.code)


class Server:
    """The loop: accepts, resumes the generators whose sockets are ready, watches children."""

    def __init__(self, agent: Agent, host: str, port: int) -> None:
        self.agent = agent
        self.listener = socket.socket()
        if os.name == "posix":
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((host, port))
        self.listener.setblocking(False)
        agent.port = self.listener.getsockname()[1]
        self.connections: List[Connection] = []
        self.children: List[Child] = []
        self.wake, self.waker = socket.socketpair()
        self.script: Optional[Script] = None
        for end in (self.wake, self.waker):
            end.setblocking(False)
        if hasattr(signal, "SIGCHLD"):
            signal.set_wakeup_fd(self.waker.fileno())
            signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        """Serve until ``/kill``. In a forked child raises InChild, with ``script`` set."""
        while not self.agent.stopping:
            reads: List[Any] = [self.listener, self.wake]
            reads += [c.sock for c in self.connections if c.want == READ]
            writes = [c.sock for c in self.connections if c.want == WRITE]
            # without SIGCHLD the children have to be asked
            pause = 0.2 if self.children and not hasattr(signal, "SIGCHLD") else 5.0
            readable, writable, _ = select.select(reads, writes, [], pause)
            ready = set(readable) | set(writable)
            if self.wake in ready:
                self.wake.recv(4096)
            self._watch_children()
            for connection in list(self.connections):
                if connection.sock in ready or connection.want == CHILD:
                    self._resume(connection)
            if self.listener in ready:
                self._accept()
            self._expire()

    def abandon(self) -> None:
        """In a forked child: give up the parent's sockets without touching them."""
        if hasattr(signal, "SIGCHLD"):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ours = [self.listener, self.wake, self.waker] + [c.sock for c in self.connections]
        if self.agent.standby is not None:
            ours.append(self.agent.standby.ours)
        for sock in ours:
            os.close(sock.detach())

    def _watch_children(self) -> None:
        for child in list(self.children):
            if child.poll() is not None:
                self.children.remove(child)
                self.agent.reap(child)

    def _accept(self) -> None:
        for _ in range(16):
            try:
                sock, address = self.listener.accept()
            except OSError:
                return
            peer = str(address[0])
            strangers = [c for c in self.connections if c.peer != self.agent.client_ip]
            stranger = self.agent.client_ip not in (None, peer)
            full = len(self.connections) >= CONNECTIONS
            if full or (stranger and len(strangers) >= STRANGERS):
                sock.close()
                continue
            connection = Connection(sock, peer, self._serve)
            self.connections.append(connection)
            self._resume(connection)

    def _resume(self, connection: Connection) -> None:
        value: Any = None
        try:
            while True:
                want = connection.steps.send(value)
                value = None
                if isinstance(want, Script):
                    value = self._fork(want)
                elif isinstance(want, Child):
                    self.children.append(want)
                else:
                    connection.want = want
                    return
        except StopIteration:
            self._close(connection)
        except (Disconnected, OSError):
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.steps.close()
        connection.sock.close()
        self.connections.remove(connection)

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            trusted = self.agent.client_ip in (None, connection.peer)
            limit = CONTROLLER_IDLE if trusted else STRANGER_IDLE
            if connection.want != CHILD and now - connection.last > limit:
                self._close(connection)

    def prepare_standby(self) -> None:
        """Start the installed analyzer in advance. In the forked child raises InChild."""
        path = os.path.join(self.agent.analyzer, "analyzer.py")
        if not self.agent.digest or not hasattr(os, "fork"):
            return
        environ = self.agent.new_key()
        standby = Standby(path, self.agent.key)
        standby.child = self._fork(standby.script(environ), standby.ours)
        self.children.append(standby.child)
        if standby.wait_ready():
            self.agent.standby = standby
        else:
            _log("the installed analyzer did not get ready: %s" % _tail(standby.child.stderr))

    def _fork(self, script: Script, *parents: socket.socket) -> Child:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self.script = script
            for sock in parents:
                os.close(sock.detach())
            raise InChild
        return Child(pid, None, script.stdout, script.stderr)

    def _serve(self, connection: Connection) -> Steps:
        again = True
        while again:
            again = yield from self._serve_one(connection)

    def _serve_one(self, connection: Connection) -> Steps:
        while b"\r\n\r\n" not in connection.buffer:
            if len(connection.buffer) > HEAD_LIMIT:
                error = HttpError(431, "The head is too large")
                return (yield from self._refuse(connection, error))
            yield from connection.receive()
        head = connection.take(connection.buffer.index(b"\r\n\r\n") + 4)
        try:
            request = Request(connection, head[:-4])
            self.agent.admit(request)
        except HttpError as refusal:
            return (yield from self._refuse(connection, refusal))
        try:
            reply = yield from self._answer(request)
            yield from request.drain()
            yield from _send_reply(connection, reply, request.keep_alive)
            return request.keep_alive
        finally:
            request.close()

    def _answer(self, request: Request) -> Steps:
        reply = Reply()
        try:
            handler = self.agent.handler(request)
            if request.headers.get("expect", "").lower() == "100-continue":
                yield from request.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            yield from request.parse()
            result = handler(request)
            if isinstance(result, types.GeneratorType):
                result = yield from result
            return result
        except HttpError as error:
            reply.status, reply.body = error.status, error.body
        except Disconnected:
            raise
        except Exception as error:
            reply.status = 500
            reply.body = {"message": "%s: %s" % (type(error).__name__, error), "error_code": 500,
                          "traceback": traceback.format_exc()}
        return reply

    def _refuse(self, connection: Connection, error: HttpError) -> Steps:
        reply = Reply()
        reply.status, reply.body = error.status, error.body
        yield from _send_reply(connection, reply, False)
        return False


class _errors:
    """Turns any failure inside into a 500 with this message."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, HttpError):
            detail = "%s: %s" % (type(error).__name__, error)
            raise HttpError(500, self._message, traceback=detail) from error


def _send_reply(connection: Connection, reply: Reply, keep_alive: bool) -> Steps:
    body, size, kind = b"", 0, "application/octet-stream"
    if reply.file is None:
        text = json.dumps(_printable(reply.body))
        body, size, kind = text.encode("utf-8"), len(text), "application/json"
    else:
        size = os.fstat(reply.file.fileno()).st_size
    head = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n" % (
        reply.status, REASONS.get(reply.status, "Status"), kind, size,
        "keep-alive" if keep_alive else "close")
    yield from connection.send(head.encode("ascii") + body)
    if reply.file is not None:
        with reply.file as file:
            while size:
                data = file.read(min(CHUNK, size))
                if not data:
                    raise Disconnected  # it shrank: the promised length cannot be kept
                size -= len(data)
                yield from connection.send(data)


def _parameters(text: str) -> Dict[str, str]:
    """``name`` and ``filename`` of a Content-Disposition, with RFC 5987 forms decoded."""
    found: Dict[str, str] = {}
    for name, star, quoted, bare in PARAMETER.findall(text):
        value = ESCAPED.sub(r"\1", quoted) if quoted else bare
        if star:
            value = unquote(value.split("''", 1)[-1])
        found[name.lower()] = value.replace("%22", '"') if name == "name" else value
    return found


def _place(upload: str, path: str) -> None:
    with _errors("Error storing file"):
        if os.name == "posix":
            os.chmod(upload, 0o644)
        shutil.move(upload, path)


def _temporary(request: Request) -> Tuple[str, str, Optional[str]]:
    form = request.form
    return form.get("suffix", ""), form.get("prefix", "tmp"), form.get("dirpath") or None


def _spawn(command: Union[str, List[str]], shell: bool, cwd: Optional[str],
           environ: Dict[str, str]) -> Child:
    stdout, stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    process = subprocess.Popen(command, shell=shell, cwd=cwd, stdin=subprocess.DEVNULL,
                               stdout=stdout, stderr=stderr, env=dict(os.environ, **environ))
    return Child(process.pid, process, stdout, stderr)


def _tail(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OUTPUT_LIMIT))
    return file.read(OUTPUT_LIMIT).decode("utf-8", "replace")


def _printable(value: Any) -> Any:
    """The same value, with bytes that are no UTF-8 replaced, so that any JSON reader takes it."""
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def folder_digest(folder: str) -> str:
    """Names and contents of a folder as one hash, as the host computes it; empty without one."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        names += [os.path.relpath(os.path.join(parent, name), folder) for name in files]
    digest = hashlib.sha256()
    for name in sorted(name.replace(os.sep, "/") for name in names):
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        # the host stores the analysis's configuration beside the analyzer
        if name != "analysis.conf":
            coded = name.encode("utf-8")
            digest.update(b"%d %d " % (len(coded), len(data)) + coded + data)
    return digest.hexdigest()[:32] if names else ""


def _loopback(peer: str) -> bool:
    return peer.startswith("127.") or peer == "::1"


def _log(text: str) -> None:
    sys.stderr.write("agent: %s\n" % text)
    sys.stderr.flush()


def _protect() -> None:
    """Stay responsive beside a sample that eats processor and memory, as far as this user may."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except (AttributeError, OSError):
        pass  # not Linux, or not root


def _rehearse() -> None:
    """Store a file once, so that a snapshot holds what the first request would load."""
    handle, path = tempfile.mkstemp(prefix="upload-")
    with os.fdopen(handle, "wb") as file:
        file.write(b"rehearsal")
    os.chmod(path, 0o644)
    shutil.move(path, path + ".moved")
    os.unlink(path + ".moved")


def _run_script(script: Script) -> int:
    """Run a script as ``__main__`` in this process, as an interpreter would. Returns its code."""
    os.setsid()
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(script.stdout.fileno(), 1)
    os.dup2(script.stderr.fileno(), 2)
    if script.cwd:
        os.chdir(script.cwd)
    os.environ.update(script.environ)
    folder = os.path.dirname(os.path.abspath(script.path))
    sys.argv, sys.path[0] = [script.path], folder
    main = types.ModuleType("__main__")
    main.__file__ = script.path
    sys.modules["__main__"] = main
    code: Any = 0
    try:
        with open(script.path, "rb") as file:
            exec(compile(file.read(), script.path, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    if code is not None and not isinstance(code, int):
        sys.stderr.write("%s\n" % code)
        code = 1
    return int(code or 0)


def main(arguments: List[str]) -> None:
    """Serve, on 0.0.0.0:8000 unless told otherwise."""
    host = arguments[0] if arguments else "0.0.0.0"
    port = int(arguments[1]) if len(arguments) > 1 else 8000
    sys.dont_write_bytecode = True
    _protect()
    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # not on this system
    analyzer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "analyzer")
    server = Server(Agent(analyzer), host, port)
    try:
        _rehearse()
        server.prepare_standby()
        # only now: who can connect may take a snapshot
        server.listener.listen(128)
        print("listening on %s:%d" % (host, server.agent.port), flush=True)
        server.run()
    except InChild:
        script = server.script
        code = 1
        try:
            if script is not None:
                server.abandon()
                code = _run_script(script)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # not sys.exit: generators and files here are the parent's, and must not be finalised
            os._exit(code & 0xFF)


if __name__ == "__main__":
    main(sys.argv[1:])
