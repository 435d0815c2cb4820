"""Whether KVM truly works here: a machine is booted with it once, and the answer remembered.

That /dev/kvm opens proves little: under some paravirtual modules the firmware runs and every
Linux kernel hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from cuckoo_machinery_qemu.spec import MachineSpec

log = structlog.get_logger()

PROBE_TIMEOUT = 8.0
"""Seconds for a kernel to come to its init: a working KVM takes one."""
_REACHED_INIT = b"Run /init as init process"
_DEVICE = "/dev/kvm"


async def choose_accelerator(
    wanted: str, specs: Sequence[MachineSpec], version: str, cache: Path
) -> str:
    """``kvm`` or ``tcg``. ``cache`` keeps the answer until the host boots or QEMU changes."""
    if wanted != "auto":
        return wanted
    spec = next((s for s in specs if s.kernel and s.initrd and s.machine == "pc"), None)
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    if spec is None or spec.kernel is None:
        log.info("qemu.kvm_unproven", hint="no machine has a kernel to try it with")
        return "kvm"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = f"{boot_id} {version} {spec.kernel} {spec.kernel.stat().st_mtime_ns}"
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if isinstance(known, dict) and known.get("key") == key:
        return str(known["accelerator"])
    answer = "kvm" if await _boots(spec) else "tcg"
    log.info("qemu.accelerator", accelerator=answer)
    cache.write_text(json.dumps({"key": key, "accelerator": answer}))
    return answer


async def _boots(spec: MachineSpec) -> bool:
    process = await asyncio.create_subprocess_exec(
        str(spec.program), "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
        "-M", "pc,accel=kvm", "-cpu", "host", "-m", str(spec.memory), "-serial", "stdio",
        "-kernel", str(spec.kernel), "-initrd", str(spec.initrd),
        "-append", "console=ttyS0 panic=-1",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            return await _says(process, _REACHED_INIT)
    except TimeoutError:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _says(process: asyncio.subprocess.Process, word: bytes) -> bool:
    seen = b""
    if process.stdout is not None:
        while data := await process.stdout.read(4096):
            seen = seen[-len(word) :] + data
            if word in seen:
                return True
    return False
