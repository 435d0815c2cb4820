"""Files of a datastore, over HTTPS at ``/folder``, with the session and the checks of the calls."""

from __future__ import annotations

import re
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlencode

from cuckoo_api.machinery import MachineryError
from cuckoo_machinery_vsphere.session import Login
from cuckoo_machinery_vsphere.settings import Server
from cuckoo_machinery_vsphere.tasks import Order

CHUNK = 1 << 20
_PATH = re.compile(r"\[(?P<store>.*?)\] ?(?P<path>.+)")
_HINTS = {
    401: "the user needs the privileges Datastore.Browse and Datastore.FileManagement",
    403: "the user needs the privileges Datastore.Browse and Datastore.FileManagement",
    404: "it is not there",
}


def location(path: str, datacenter: str) -> str:
    """The request's target for ``[store] folder/file``."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise MachineryError(f"{path!r} is not a path on a datastore")
    where = {"dcPath": datacenter, "dsName": found["store"]}
    return f"/folder/{quote(found['path'])}?{urlencode(where, quote_via=quote)}"


def download(
    login: Login, server: Server, path: str, datacenter: str, target: Path, order: Order
) -> None:
    """Write a datastore's file to ``target``, which does not exist; nor does it after a failure."""
    request = location(path, datacenter)
    connection = HTTPSConnection(
        server.host, server.port, timeout=server.timeout, context=login.context
    )
    try:
        connection.request("GET", request, headers={"Cookie": login.cookie})
        response = connection.getresponse()
        if response.status != 200:
            hint = _HINTS.get(response.status, " ".join(response.reason.split()))
            raise MachineryError(f"{path} is not given out (HTTP {response.status}): {hint}")
        _save(response, target, order)
    finally:
        connection.close()


def _save(response: HTTPResponse, target: Path, order: Order) -> None:
    expected, size = response.length, 0
    try:
        with target.open("xb") as file:
            while chunk := response.read(CHUNK):
                order.check()
                size += len(chunk)
                _write(file, chunk, target)
        order.check()  # who gave up does not expect a file
        if expected is not None and size != expected:
            text = f"the file ended after {size} of {expected} bytes"
            raise HTTPException(text)  # noqa: TRY301 - to be tidied up as every other
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, chunk: bytes, target: Path) -> None:
    try:
        file.write(chunk)
    except OSError as exc:  # not to be taken for one of the connection's
        raise MachineryError(f"{target} cannot be written: {exc.strerror}") from exc
