"""libvirt's errors as the contract's, with libvirt's words and without anybody's credentials."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import libvirt

from cuckoo_api.machinery import (
    BackendUnavailable,
    BadConfig,
    MachineNotFound,
    MachineryError,
    NotSupported,
    OperationTimedOut,
    SnapshotNotFound,
    WrongState,
)

_KINDS: dict[int, type[MachineryError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: MachineNotFound,
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: SnapshotNotFound,
    libvirt.VIR_ERR_OPERATION_INVALID: WrongState,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: OperationTimedOut,
    libvirt.VIR_ERR_NO_SUPPORT: NotSupported,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: NotSupported,
    libvirt.VIR_ERR_INVALID_CONN: BackendUnavailable,
    libvirt.VIR_ERR_RPC: BackendUnavailable,
    libvirt.VIR_ERR_AUTH_FAILED: BackendUnavailable,
    libvirt.VIR_ERR_AUTH_CANCELLED: BackendUnavailable,
}
_NEVER = {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONF_SYNTAX}
"""What no retry of a connection mends: libvirt does not know such a URI."""

_SECRET = re.compile("pass|pwd|secret|token", re.IGNORECASE)


class Uri:
    """A libvirt URI that shows itself without the credentials that may stand in it."""

    def __init__(self, text: str) -> None:
        """Raises BadConfig for what is no URI at all."""
        self.text = text
        try:
            parts = urlsplit(text)
        except ValueError:
            raise BadConfig("[kvm] dsn is no URI; set it to one of libvirt's") from None
        where = parts.netloc.rpartition("@")[2]
        self.shown = f"{parts.scheme}://{where}{parts.path}"
        self.local = not where and parts.scheme.partition("+")[2] in ("", "unix")
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        secrets = [value for name, value in parse_qsl(parts.query) if _SECRET.search(name)]
        if password:
            secrets += [user, password]
        forms = {form for s in secrets for form in (s, unquote(s), quote(s, safe="")) if form}
        self._secrets = sorted(forms, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"Uri({self.shown!r})"

    def clean(self, text: str) -> str:
        """A text in which none of the URI's secrets is left."""
        text = text.replace(self.text, self.shown)
        for secret in self._secrets:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
        return text

    def clean_error(self, exc: libvirt.libvirtError) -> str:
        """The error's message on one line, cleaned; the error too, for it will be chained."""
        exc.args = tuple(self.clean(str(arg)) for arg in exc.args)
        if exc.err is not None:
            exc.err = tuple(self.clean(e) if isinstance(e, str) else e for e in exc.err)
        return " ".join(str(exc).split())


def translated(exc: libvirt.libvirtError, uri: Uri, about: str, *, alive: bool) -> MachineryError:
    """A failed call's error. ``alive``: whether the connection is still there."""
    text = f"{about}: {uri.clean_error(exc)}"
    if not alive or exc.get_error_domain() == libvirt.VIR_FROM_RPC:
        return BackendUnavailable(text)
    return _KINDS.get(exc.get_error_code() or 0, MachineryError)(text)


def not_connected(exc: libvirt.libvirtError, uri: Uri) -> MachineryError:
    """A failed attempt to connect."""
    text = f"libvirt at {uri.shown}: {uri.clean_error(exc)}"
    if exc.get_error_code() in _NEVER or exc.get_error_domain() == libvirt.VIR_FROM_URI:
        return BadConfig(f"{text}; correct [kvm] dsn")
    return BackendUnavailable(text)
