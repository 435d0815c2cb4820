"""How a worker of uWSGI ends when it is replaced, where uWSGI itself may hang: before 2.0.27.

There SIGHUP comes to the worker's first thread, which waits for all others at once, wherever it is.
In the middle of a request it holds Python's lock, without which the others do not come to an end;
and a connection that it has just accepted is dropped. Here a thread that does nothing else gets
the signal instead.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import signal
import threading
from collections.abc import Callable
from time import sleep

REPLACED = 17
"""The exit code by which uWSGI knows a worker that ends because it is replaced."""
STARTED = 0.05
"""Seconds between two looks for the worker's threads, when it is replaced before it serves."""


def end_when_replaced(stop: Callable[[], None]) -> None:
    """Have this worker answer what it has taken, ``stop``, and end, once uWSGI asks for it.

    For the main thread, before it starts others: the signal is kept from them all. Does nothing
    outside uWSGI, with one thread for each worker, and where uWSGI does the same by itself.
    """
    try:
        worker = importlib.import_module("uwsgi")
        # nobody else can call it from 2.0.26 on, and nobody needs to from 2.0.27 on
        wait_for_threads = ctypes.CDLL(None).wait_for_threads
    except (ImportError, AttributeError):
        return
    threads = int(worker.opt.get("threads", 1))
    if threads < 2:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})

    def wait() -> None:
        signal.sigwait({signal.SIGHUP})
        while _serving() < threads - 1:
            sleep(STARTED)
        # each ends between two requests, and ctypes has left them Python's lock
        wait_for_threads()
        stop()
        # the first thread is no more, without which Python does not end by itself
        os._exit(REPLACED)

    threading.Thread(target=wait, name="end", daemon=True).start()


def _serving() -> int:
    """How many of uWSGI's threads are there, beside the first: they name themselves."""
    names = (thread.name for thread in threading.enumerate())
    return sum(bool(re.fullmatch(r"uWSGIWorker\d+Core[1-9]\d*", name)) for name in names)
