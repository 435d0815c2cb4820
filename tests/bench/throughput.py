"""Requests a second: the real server beside a bare aiohttp handler, in turns, by wrk."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

from .figure import Figure
from .server import Server, bare_server, real_server

ROUNDS = 5
SECONDS = 2
CLIENTS = 32
UPLOADS = "/tasks/create/file"
PROGRAM = Path("/bin/bash")
"""Its first 64 KiB are what is uploaded: a real program, larger than that on every system."""

COUNT = """
function done(summary)
    local e = summary.errors
    print("counted", summary.requests, summary.duration,
          e.connect + e.read + e.write + e.status + e.timeout)
end
"""
UPLOAD = (
    COUNT
    + r"""
local program, start, number = "", "", 0

function init(args)
    local file = io.open(args[1], "rb")
    program, start = file:read(65536 - 32), args[2]
    file:close()
    assert(#program == 65536 - 32)
end

function request()
    number = number + 1
    -- each is another file: nothing is saved by its being there
    return wrk.format("POST", nil, nil, "--b\r\n" ..
        'Content-Disposition: form-data; name="file"; filename="a.elf"\r\n\r\n' ..
        program .. start .. string.format("%016x", number) .. "\r\n--b--\r\n")
end
"""
)


def measure(folder: Path) -> list[Figure]:
    """View, list and upload."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (apt-get install wrk)")
    (folder / "count.lua").write_text(COUNT)
    (folder / "upload.lua").write_text(UPLOAD)
    with real_server(folder / "cwd") as real, bare_server(folder / "bare.log") as bare:
        # the upload comes last: it adds tasks
        return [
            _figure(folder, "GET /tasks/view/N", real, "/tasks/view/500", bare, 0.18),
            _figure(folder, "GET /tasks/list/100", real, "/tasks/list/100", bare, 0.04),
            _figure(folder, "POST /tasks/create/file, 64 KiB", real, UPLOADS, bare, 0.06),
        ]


def _figure(
    folder: Path, name: str, real: Server, path: str, bare: Server, at_least: float
) -> Figure:
    script = folder / ("upload.lua" if path == UPLOADS else "count.lua")
    # a server that has just started is slower, and starts what looks at uploads with the first
    rate(real, path, script, seconds=3)
    pairs = []
    for _ in range(ROUNDS):
        yardstick = rate(bare, "/bare", folder / "count.lua")
        pairs.append((rate(real, path, script), yardstick))
    return Figure(name=name, pairs=pairs, yardstick="bare handler", unit="req/s", at_least=at_least)


def rate(server: Server, path: str, script: Path, *, seconds: int = SECONDS) -> float:
    """Requests a second; every one was answered well."""
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)),
            *("-H", f"Authorization: Bearer {server.token}"),
            *("-H", "Content-Type: multipart/form-data; boundary=b"),
            *(f"{server.url}{path}", "--", str(PROGRAM), secrets.token_hex(8)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("counted")]
    requests, microseconds, errors = (int(word) for word in line.split()[1:])
    assert requests, done.stdout
    assert not errors, done.stdout
    return requests / microseconds * 1e6
