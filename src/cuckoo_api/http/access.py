"""Who may ask, for what, and how often."""

from __future__ import annotations

import base64
import binascii
import functools
import hmac
import ipaddress
import math
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import structlog
from aiohttp import hdrs, web

from cuckoo_api.http.address import forwarded_for
from cuckoo_api.http.keys import CLIENT
from cuckoo_api.http.ratelimit import Bucket
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.settings import Rights, Settings, Token
from cuckoo_api.settings.ini import Findings
from cuckoo_api.settings.tokens import MAIN, digest, read_tokens, stamp

log = structlog.get_logger()

LOOK = 1.0
"""Seconds between two looks at whether tokens.conf has changed."""

HOW_TO_AUTHENTICATE = (
    "Authentication in the form of an 'Authorization: Bearer <TOKEN>' header is required; "
    "the token is api_token under [cuckoo] in conf/cuckoo.conf of the server's working directory, "
    "or one that 'cuckoo token add' has made there"
)
FOREIGN = (
    "This server has no api_token and therefore answers only requests of this machine that are "
    "addressed to localhost and made by no other web site; set [cuckoo] api_token in "
    "conf/cuckoo.conf to open it"
)


class Refused(CuckooError):
    """The client may not do this, or not now."""

    def headers(self) -> Mapping[str, str]:
        """What the answer carries besides its text."""
        return {}


class Unauthorized(Refused):
    """The token is missing or wrong."""

    code = "unauthorized"
    status = 401

    def headers(self) -> Mapping[str, str]:
        """How to authenticate."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(Refused):
    """The request is understood, and refused to this client."""

    code = "forbidden"
    status = 403


class TooManyRequests(Refused):
    """The token's rate is used up."""

    code = "too_many_requests"
    status = 429

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds

    def headers(self) -> Mapping[str, str]:
        """When to come again."""
        return {"Retry-After": str(self.seconds)}


class _Client:
    """One token, and what is left of its rate."""

    __slots__ = ("bucket", "token")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.bucket = Bucket(token.rate, token.burst) if token.rate else None


class Access:
    """The tokens of one server, as they are now: a change of tokens.conf needs no restart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asks_for_token = settings.asks_for_token
        self._clients: tuple[_Client, ...] = ()
        self._stamp: tuple[int, ...] | None = ()  # of no file: the first look reads it
        self._next_look = 0.0
        self._take(settings.tokens)

    def reconfigure(self, settings: Settings) -> None:
        """Take on the token of other settings; tokens.conf is read before the next request."""
        self._settings = settings
        self._asks_for_token |= settings.asks_for_token
        self._stamp = ()
        self._take(settings.tokens)

    def admit(self, request: web.Request, needed: Rights) -> None:
        """Raise Refused unless the request may go on, and remember in it who asks."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._look()
        if not self._asks_for_token:
            check_is_local(request)
            return
        client = self._find(shown_token(request.headers.get(hdrs.AUTHORIZATION, "")))
        if client is None:
            raise Unauthorized(HOW_TO_AUTHENTICATE)
        token = client.token
        request[CLIENT] = token.name
        if client.bucket is not None and (wait := client.bucket.take(now)):
            seconds = math.ceil(wait)
            raise TooManyRequests(
                f"The token {token.name!r} may send {token.rate} requests a minute; "
                f"the next one in {seconds} s",
                seconds,
            )
        if not token.rights.cover(needed):
            raise Forbidden(
                f"This needs a token with the right {needed.value!r}; "
                f"{token.name!r} has {token.rights.value!r}"
            )

    def _find(self, token: bytes) -> _Client | None:
        given, found = digest(token), None
        for client in self._clients:  # all of them: how long it takes says nothing
            if hmac.compare_digest(client.token.digest, given):
                found = client
        return found

    def _look(self) -> None:
        """Take the file's tokens where it has changed; where it has become faulty, stay."""
        found = stamp(self._settings.cwd)
        if found == self._stamp:
            return
        self._stamp = found
        findings = Findings()
        tokens = read_tokens(self._settings.cwd, findings)
        if findings.faults:
            log.error("tokens.faulty", faults=findings.faults)
            return
        self._take(tokens)
        # when the last one is revoked, nobody may come in instead of everybody
        self._asks_for_token |= bool(tokens)

    def _take(self, tokens: Iterable[Token]) -> None:
        known = {client.token: client for client in self._clients}
        if main := self._settings.cuckoo.api_token:
            main_token = Token(name=MAIN, digest=digest(main), rights=Rights.ADMIN)
            tokens = (main_token, *tokens)
        # who is known already goes on with what is left of its rate
        self._clients = tuple(known.get(token) or _Client(token) for token in tokens)


ACCESS = web.AppKey("access", Access)


def shown_token(header: str) -> bytes:
    """What an Authorization header shows; empty for one of another form."""
    scheme, _, value = header.partition(" ")
    given = value.strip().encode("utf-8", "surrogateescape")
    match scheme.lower():
        case "bearer":
            return given
        case "basic":
            try:
                return base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return b""
        case _:
            return b""


def check_is_local(request: web.Request) -> None:
    """Refuse what a foreign web page may have made a local browser send, or a proxy passes on."""
    headers = request.headers
    forwarded = forwarded_for(request)
    if forwarded and not ipaddress.ip_address(forwarded).is_loopback:
        raise Forbidden(FOREIGN)
    host = headers.get(hdrs.HOST)
    if host is not None and not is_local(f"//{host}"):
        raise Forbidden(FOREIGN)
    origin = headers.get(hdrs.ORIGIN)
    if origin is not None and not is_local(origin):
        raise Forbidden(FOREIGN)
    if headers.get("Sec-Fetch-Site", "") == "cross-site":
        raise Forbidden(FOREIGN)


@functools.lru_cache(maxsize=64)
def is_local(url: str) -> bool:
    """Whether the URL, or ``//host:port``, names this machine by its loopback."""
    try:
        parts = urlsplit(url)
        name = parts.hostname or ""
        if parts.username is not None or parts.path not in ("", "/"):
            return False
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
