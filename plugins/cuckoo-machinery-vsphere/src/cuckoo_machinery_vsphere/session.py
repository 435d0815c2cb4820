"""One login, shared by all threads, and made anew when the server has forgotten it.

A call is asked again in two cases only. The server answered that it knows no such session: then
it did nothing, and every call may be repeated. The connection broke: then nobody knows what was
done, and only a call that changes nothing (:meth:`Session.read`) is repeated, once.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pyVmomi import SoapStubAdapter, vim, vmodl

from cuckoo_api.machinery import BackendUnavailable
from cuckoo_machinery_vsphere.faults import LOST, REFUSED, words
from cuckoo_machinery_vsphere.settings import Server
from cuckoo_machinery_vsphere.tls import tls_context

T = TypeVar("T")

VERSION = "vim.version.version10"
"""vSphere 6.0's: all that is used here is in it, and newer servers speak it. So none is asked for
its versions, which pyVmomi does without a time-out."""
CONNECTIONS = 16
"""Idle connections that are kept."""
IDLE = 20
"""Seconds for which one is kept: few calls shall meet one that the server has closed meanwhile."""
BARRED_AFTER_REFUSAL = 60.0
"""Seconds in which no login is tried after one was refused: an account locks after a few."""
BARRED_AFTER_FAILURE = 1.0


@dataclass(frozen=True, eq=False)
class Login:
    """One session of the server's, as long as it lasts. Safe in several threads."""

    stub: SoapStubAdapter
    content: Any
    context: ssl.SSLContext
    generation: int

    def bind(self, kind: Any, key: str) -> Any:
        """A managed object by its id, to call methods of."""
        return kind(key, self.stub)

    def machine(self, key: str) -> Any:
        return self.bind(vim.VirtualMachine, key)

    @property
    def cookie(self) -> str:
        """What shows a request over HTTP to be of this session."""
        return str(self.stub.cookie).partition(";")[0]


class Session:
    """The login of one backend. All methods block, and may be called by many threads at once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._generation = 0
        self._context: ssl.SSLContext | None = None
        self._barred = (0.0, "")
        self._closed = False

    def read(self, ask: Callable[[Login], T]) -> T:
        """Ask what changes nothing."""
        return self._call(ask, (ConnectionError, ssl.SSLError))

    def act(self, ask: Callable[[Login], T]) -> T:
        """Ask what must not happen twice."""
        return self._call(ask, ())

    def _call(self, ask: Callable[[Login], T], again: tuple[type[Exception], ...]) -> T:
        login = self.login()
        try:
            return ask(login)
        except vim.fault.NotAuthenticated:
            login = self.renew(login)
        except again:
            pass
        return ask(login)

    def login(self) -> Login:
        """The present login; made if there is none."""
        return self._login or self.renew(None)

    def renew(self, old: Login | None) -> Login:
        """Another login than ``old``, which is of no use: the one that somebody else made, or new.

        Of many threads that find ``old`` dead, one logs in and the others take what it got.
        """
        with self._lock:
            if self._login is not None and self._login is not old:
                return self._login
            until, why = self._barred
            if self._closed or time.monotonic() < until:
                raise BackendUnavailable(why)
            if self._login is not None:
                discard(self._login.stub)
            self._login = None
            made = self._log_in()
            if isinstance(made, Login):
                self._login = made
                return made
            self._barred = made
        # outside of all that handled the failure: its frames hold the password
        raise BackendUnavailable(made[1])

    def _log_in(self) -> Login | tuple[float, str]:
        """A login, or until when no other shall be tried, and why."""
        server, stub, wait = self.server, None, BARRED_AFTER_FAILURE
        try:
            if self._context is None:
                self._context = tls_context(server)
            stub = SoapStubAdapter(
                host=server.host, port=server.port, version=VERSION, sslContext=self._context,
                httpConnectionTimeout=server.timeout,
                poolSize=CONNECTIONS, connectionPoolTimeout=IDLE,
            )  # fmt: skip
            content: Any = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
            content.sessionManager.Login(server.user, str(server.pwd))
        except REFUSED as exc:
            why = f"{server.name} refuses the login of {server.user!r}: {words(exc)}"
            wait = BARRED_AFTER_REFUSAL
        except (vmodl.MethodFault, *LOST) as exc:
            why = f"{server.name} cannot be reached: {words(exc)}"
        except Exception as exc:  # noqa: BLE001 - the frames of no error may hold the password
            why = f"{server.name}: the login fails: {type(exc).__name__}"
        else:
            self._generation += 1
            return Login(stub, content, self._context, self._generation)
        if stub is not None:
            discard(stub)
        return time.monotonic() + wait, why

    def sibling(self, login: Login, timeout: float) -> Login:
        """The same session on connections of its own, for answers that are long in coming."""
        server = self.server
        stub = SoapStubAdapter(
            host=server.host, port=server.port, version=VERSION, sslContext=login.context,
            httpConnectionTimeout=timeout, poolSize=1,
        )  # fmt: skip
        stub.cookie = login.stub.cookie
        return Login(stub, login.content, login.context, login.generation)

    def close(self) -> None:
        """Log out, if there is a login and the server answers. There is no other afterwards."""
        with self._lock:
            self._closed, self._barred = True, (0.0, f"{self.server.name}: the backend is closed")
            login, self._login = self._login, None
        if login is not None:
            with contextlib.suppress(vmodl.MethodFault, *LOST):
                login.content.sessionManager.Logout()
            discard(login.stub)


def discard(stub: SoapStubAdapter) -> None:
    """Close its connections: idle ones now, others when they have their answer."""
    stub.poolSize = 0
    stub.DropConnections()


def fault_of(missing: Any) -> None:
    """Raise when a property is missing because the session is: that is told in no other way."""
    for one in missing or ():
        if isinstance(one.fault, vim.fault.NotAuthenticated):
            raise one.fault


def key_of(managed: Any) -> str:
    """The server's id of an object."""
    return str(managed._GetMoId())  # noqa: SLF001 - it has no public name
