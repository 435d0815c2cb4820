"""The one base of every error that a user may see."""

from __future__ import annotations


class CuckooError(Exception):
    """An error with a stable code, an HTTP status, a text for the user and one for the log.

    ``str(error)`` is what the user reads. ``log`` may say more; it never leaves the server.
    """

    code = "internal"
    status = 500

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log or message


class BadInput(CuckooError):
    """A value that does not parse or cannot be served; the text says which, and what may be."""

    code = "bad_input"
    status = 400


class NotFound(CuckooError):
    """The thing asked for does not exist."""

    code = "not_found"
    status = 404


class Conflict(CuckooError):
    """The thing exists and its state forbids the request."""

    code = "conflict"
    status = 409


class TooLarge(CuckooError):
    """An upload over the limit; nothing of it was kept."""

    code = "too_large"
    status = 413


class Unavailable(CuckooError):
    """The server cannot do this now; the text says what is missing."""

    code = "unavailable"
    status = 503


class ConfigError(CuckooError):
    """The configuration cannot work. ``faults`` holds one line each, all that were found."""

    code = "bad_config"

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
