"""Sends what a package itself brought into the guest: the file behind a URL."""

import os

from droppedfiles import MAX_FILE, open_regular, safe_name
from results import Log, ResultServer

MAX_FILES = 20


def send_package_files(folder: str, server: ResultServer, log: Log) -> None:
    """Send the regular files of the package's working folder, as ``package_files/NAME``."""
    try:
        names = sorted(os.listdir(folder))[:MAX_FILES]
    except OSError:
        return  # the target took it away
    for number, name in enumerate(names):
        path = os.path.join(folder, name)
        handle = open_regular(path)
        if handle is None:
            continue
        with os.fdopen(handle, "rb") as file:
            try:
                destination = "package_files/%d_%s" % (number, safe_name(name))
                server.upload(destination, file, path, "", MAX_FILE)
            except OSError as error:
                log.warning("Cannot send %r: %s" % (path, error))
