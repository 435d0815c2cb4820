"""What the store's tests put into it."""

from __future__ import annotations

from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import NewTask

HASH = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def url(target: str = "http://example.com/", **fields: object) -> NewTask:
    return NewTask(category="url", target=target, **fields)  # type: ignore[arg-type]  # the test's own


def sample(sha256: str = HASH, md5: str = "5d41402abc4b2a76b9719d911017c592") -> NewSample:
    return NewSample(
        md5=md5,
        sha1="aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d",
        sha256=sha256,
        sha512="9" * 128,
        crc32="3610A686",
        ssdeep=None,
        file_size=5,
        file_type="ASCII text, with no line terminators",
    )


def machine(name: str = "one", platform: str = "linux", tags: tuple[str, ...] = ()) -> Machine:
    return Machine(
        id=0,
        name=name,
        label=f"{name}-label",
        manager="fake",
        ip="192.0.2.1",
        platform=platform,
        tags=list(tags),
        options=["a", "b"],
        resultserver_ip="192.0.2.254",
        resultserver_port=2042,
    )
