"""Samples and folders go for good only when nobody wants them any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.errors import NotFound


@pytest.fixture
async def artefacts(tmp_path: Path) -> AsyncIterator[Artefacts]:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    yield artefacts
    await artefacts.close()


async def unwanted() -> bool:
    return False


async def wanted() -> bool:
    return True


@pytest.mark.parametrize("size", [5, 700_000])
async def test_a_sample_stays_while_an_upload_or_a_row_has_it(
    artefacts: Artefacts, size: int
) -> None:
    for _ in range(2):  # written by this upload, then found there by it
        async with artefacts.receive(max_size=1 << 20) as upload:
            await upload.write(b"x" * size)
            sha256 = (await upload.finish()).sha256
            await artefacts.forget_binary(sha256, unwanted)
            assert artefacts.binary(sha256).stat().st_size == size
    await artefacts.forget_binary(sha256, wanted)
    assert artefacts.binary(sha256).stat().st_size == size
    await artefacts.forget_binary(sha256, unwanted)
    with pytest.raises(NotFound):
        artefacts.binary(sha256)
    await artefacts.forget_binary(sha256, unwanted)  # gone already


async def test_a_sample_that_is_removed_meanwhile_is_written_anew(artefacts: Artefacts) -> None:
    async with artefacts.receive(max_size=100) as first:
        await first.write(b"hello")
        sha256 = (await first.finish()).sha256
    async with artefacts.receive(max_size=100) as second:
        await second.write(b"hello")
        await artefacts.forget_binary(sha256, unwanted)
        await second.finish()
        assert artefacts.binary(sha256).read_bytes() == b"hello"


async def test_a_folder_is_hidden_in_one_step_and_comes_back(artefacts: Artefacts) -> None:
    folder = artefacts.analysis(7)
    await folder.create(b"{}")
    await folder.hide()
    assert not folder.path.exists()
    assert artefacts.hidden() == [7]
    await folder.show()
    assert folder.file("task.json").read_bytes() == b"{}"
    assert artefacts.hidden() == []
    await folder.hide()
    await folder.remove()
    assert artefacts.hidden() == []
    assert list(folder.path.parent.iterdir()) == []
    await artefacts.analysis(8).hide()  # there is none
    await artefacts.analysis(8).remove()
