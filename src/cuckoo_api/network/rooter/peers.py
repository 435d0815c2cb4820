"""Who is at the other end of the rooter's socket, who may be, and what is handed over."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import struct
from pathlib import Path

import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.network.rooter.commands import Answer, encode
from cuckoo_api.settings.routing import RooterSection

log = structlog.get_logger()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of who is at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, 17, size))
    return pid, uid


def may_ask(uid: int, allowed: RooterSection) -> bool:
    """Whether this account may give commands."""
    if uid in {0, os.geteuid()}:
        return True
    with contextlib.suppress(KeyError):
        if allowed.user and uid == pwd.getpwnam(allowed.user).pw_uid:
            return True
    with contextlib.suppress(KeyError):
        if allowed.group:
            account = pwd.getpwuid(uid)
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            return grp.getgrnam(allowed.group).gr_gid in groups
    return False


def let_in(path: Path, allowed: RooterSection) -> None:
    """Let those connect who may ask; who they are is checked again when they do."""
    try:
        if allowed.group:
            os.chown(path, -1, grp.getgrnam(allowed.group).gr_gid)
        elif allowed.user:
            os.chown(path, pwd.getpwnam(allowed.user).pw_uid, -1)
    except KeyError as exc:
        raise CuckooError(f"[rooter]: there is no account or group {exc}") from exc
    except OSError as exc:
        # without the right to give files away the folder's own rights have to do
        log.warning("rooter.socket", path=str(path), reason=exc.strerror)
        path.chmod(0o666)
        return
    path.chmod(0o660)


async def pass_on(writer: asyncio.StreamWriter, answer: Answer, descriptor: int) -> None:
    """Answer with a descriptor, and let go of it. Raises OSError where the peer does not read."""
    try:
        if writer.transport.get_write_buffer_size():
            raise BlockingIOError
        with writer.get_extra_info("socket").dup() as own:
            socket.send_fds(own, [encode(answer)], [descriptor])
    finally:
        # where nobody has it the tap goes, which waits for others' changes of the network
        await asyncio.to_thread(os.close, descriptor)
