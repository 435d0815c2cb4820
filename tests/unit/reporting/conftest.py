from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job

LIMIT = 32 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An analysis folder in Cuckoo's layout, beside the binaries."""
    path = tmp_path / "storage" / "analyses" / "7"
    for name in ("logs", "files", "shots", "memory", "network", "reports"):
        (path / name).mkdir(parents=True)
    (tmp_path / "storage" / "binaries").mkdir()
    return path


@pytest.fixture
def sample(folder: Path) -> Callable[[bytes], None]:
    """Puts a submitted file in its place."""

    def put(content: bytes) -> None:
        binary = folder.parents[1] / "binaries" / "sample"
        binary.write_bytes(content)
        (folder / "binary").symlink_to("../../binaries/sample")

    return put


@pytest.fixture
def evidence(folder: Path) -> Evidence:
    return Evidence(folder, LIMIT)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def job() -> Job:
    return Job(
        category="file",
        target="/home/user/demo-sample.sh",
        info={"id": 7, "score": 0.0},
        guest_ip="192.168.55.10",
        resultserver_ip="192.168.55.1",
        resultserver_port=2042,
    )
