"""Open files that come over a unix socket from another process."""

from __future__ import annotations

import socket
import struct

MOST = 3
"""In one message; the kernel closes what comes beyond."""
_NUMBER = struct.Struct("=i")


def received(channel: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A message of at most ``size`` bytes, and the open files that came with it: the caller's.

    Python's own function for it drops the flags: other programs that we start would inherit them.
    """
    data, extra, _, _ = channel.recvmsg(
        size, socket.CMSG_LEN(MOST * _NUMBER.size), flags | socket.MSG_CMSG_CLOEXEC
    )
    rights = [one[2] for one in extra if one[:2] == (socket.SOL_SOCKET, socket.SCM_RIGHTS)]
    return data, [number for packed in rights for (number,) in _NUMBER.iter_unpack(packed)]
