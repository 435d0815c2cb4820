"""What somebody who has broken out of the guest, into QEMU, can do: little."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from qemukit import ADDRESSES, SNAPSHOT, UID_BASE, Lab, digests, inside, pid_of, run, started

from cuckoo_api.machinery import MachineryError
from cuckoo_machinery_qemu.backend import QemuBackend


def status(pid: int) -> dict[str, list[str]]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


async def test_each_qemu_runs_without_rights_as_a_user_of_its_own(
    lab: Lab, backend: QemuBackend
) -> None:
    async with started(backend), started(backend, "two"):
        for number, label in enumerate(ADDRESSES):
            found = status(pid_of(backend, label))
            uid = str(UID_BASE + number)
            assert found["Uid"] == found["Gid"] == [uid] * 4
            assert found["Groups"] == []
            assert found["NoNewPrivs"] == ["1"]
            assert found["Seccomp"] == ["2"], "no filter"
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert found[kind] == ["0" * 16], kind


async def test_qemu_holds_no_descriptor_but_its_own(lab: Lab, backend: QemuBackend) -> None:
    async with started(backend):
        folder = Path(f"/proc/{pid_of(backend)}/fd")
        files = {str(path) for one in folder.iterdir() if (path := one.readlink()).is_absolute()}
        run_folder = backend.config.state_dir.resolve() / "one/run"
        base = (lab.snapshots / "one/snapshots" / SNAPSHOT).resolve()
        assert files <= {
            "/dev/null",
            "/dev/net/tun",
            str(lab.image.disk.resolve()),
            str(base / "disk.qcow2"),
            str(run_folder / "overlay.qcow2"),
            str(run_folder / "state.qcow2"),
        }


VANDAL = """
for file in *; do echo garbage > "$file"; rm -f "$file"; ln -s /etc/passwd "$file"; done
for name in screen.ppm memory.dmp capture.pcap; do rm -f $name; ln -s "$1" $name; done
for fd in /proc/$2/fd/*; do case $(readlink $fd) in /*qcow2) echo garbage > $fd;; esac; done
cd "$3" && for file in *; do echo garbage > "$file"; rm -f "$file"; done
echo done
"""


async def test_a_qemu_in_a_guest_s_hands_cannot_change_what_the_next_starts_from(
    lab: Lab, backend: QemuBackend, tmp_path: Path
) -> None:
    base = (lab.snapshots / "one/snapshots" / SNAPSHOT).resolve()
    kept = [Path(lab.image.folder), base]
    before = digests(*kept)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    async with started(backend):
        pid = str(pid_of(backend))
        as_qemu = ("setpriv", f"--reuid={UID_BASE}", f"--regid={UID_BASE}", "--clear-groups", "--")
        done = subprocess.run(
            [*as_qemu, "sh", "-c", VANDAL, "sh", str(secret), pid, str(base)],
            cwd=backend.config.state_dir / "one/run",
            capture_output=True,
            text=True,
            check=True,
        )
        assert "done" in done.stdout
        assert "Permission denied" in done.stderr
        # nor lead us to give a file of the host away
        target = tmp_path / "screen"
        with pytest.raises(MachineryError):
            await backend.screenshot("one", target)
        assert not target.exists()
    assert digests(*kept) == before
    async with started(backend) as agent:
        assert await inside(agent, "echo on") == "on\n"


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_qemu_sees_an_empty_network(backend: QemuBackend) -> None:
    async with started(backend):
        pid = pid_of(backend)
        assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        shown = run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-br", "-4", "address")
        assert [line.split() for line in shown.splitlines()] == [["lo", "UNKNOWN", "127.0.0.1/8"]]
