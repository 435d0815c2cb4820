"""The guest's screen is kept where it changed; what is no picture ends the series, no more."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from cuckoo_api.analysis import screenshots as module
from cuckoo_api.analysis.screenshots import take_screenshots
from cuckoo_api.artefacts import AnalysisFolder, Artefacts
from cuckoo_api.machinery import Capability, OperationTimedOut
from cuckoo_api.model.machine import Machine

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Screen:
    """A lease as far as it is looked at: shows each of these, then no more."""

    capabilities = Capability.SCREENSHOT
    machine = Machine(
        id=1, name="one", label="one", manager="fake", ip="192.0.2.1", platform="linux",
        resultserver_ip="192.0.2.2", resultserver_port=2042,
    )  # fmt: skip

    def __init__(self, shown: Iterable[bytes]) -> None:
        self.shown = list(shown)
        self.looks = 0

    async def screenshot(self, path: Path) -> None:
        self.looks += 1
        if not self.shown:
            raise OperationTimedOut("no picture")
        path.write_bytes(self.shown.pop(0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnalysisFolder:
    monkeypatch.setattr(module, "INTERVAL", 0)
    (tmp_path / "7" / "shots").mkdir(parents=True)
    return AnalysisFolder(tmp_path / "7", tmp_path)


def picture(
    colour: tuple[int, int, int], form: str = "PPM", size: tuple[int, int] = (8, 6)
) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


async def look_at(screen: Screen, folder: AnalysisFolder) -> None:
    artefacts = Artefacts(folder.path.parent)
    await artefacts.open()
    try:
        await take_screenshots(screen, folder, artefacts)  # type: ignore[arg-type]  # as much as it needs
    finally:
        await artefacts.close()


async def shots(folder: AnalysisFolder, *shown: bytes) -> list[str]:
    """The files that such a screen leaves."""
    await look_at(Screen(shown), folder)
    return sorted(path.name for path in (folder.path / "shots").iterdir())


async def test_one_picture_is_kept_for_each_change(folder: AnalysisFolder) -> None:
    red, blue = picture(RED), picture(BLUE)
    # the first comes again: it is there already
    assert await shots(folder, red, red, blue, blue, red) == ["0001.jpg", "0002.jpg"]

    with Image.open(folder.path / "shots" / "0002.jpg") as kept:
        assert (kept.format, kept.size) == ("JPEG", (8, 6))
        colour = kept.getpixel((3, 3))
    assert isinstance(colour, tuple)
    assert colour[2] > 200 > colour[0]


def text_screen(*cells: tuple[int, int]) -> bytes:
    """A console of 720 x 400 with these cells of 9 x 16 filled."""
    screen = Image.new("RGB", (720, 400))
    for column, row in cells:
        screen.paste((200, 200, 200), (column * 9, row * 16, column * 9 + 9, row * 16 + 16))
    buffer = io.BytesIO()
    screen.save(buffer, "PPM")
    return buffer.getvalue()


async def test_a_cursor_that_blinks_is_no_change_and_a_typed_word_is(
    folder: AnalysisFolder,
) -> None:
    empty, cursor = text_screen(), text_screen((0, 0))
    word = [text_screen(*((n, 0) for n in range(length))) for length in range(2, 6)]
    kept = await shots(folder, empty, cursor, empty, cursor, *word, empty, word[-1])
    # what was typed shows at the latest with the second letter
    assert kept == ["0001.jpg", "0002.jpg", "0003.jpg"]


async def test_pictures_of_the_guest_s_own_are_left_alone(folder: AnalysisFolder) -> None:
    (folder.path / "shots" / "0001.jpg").write_bytes(b"the guest's")
    assert await shots(folder, picture(RED), picture(BLUE)) == [
        "0001.jpg",
        "0002.jpg",
        "0003.jpg",
    ]
    assert (folder.path / "shots" / "0001.jpg").read_bytes() == b"the guest's"


async def test_the_form_of_a_picture_is_no_change(folder: AnalysisFolder) -> None:
    assert await shots(folder, picture(RED), picture(RED, "PNG")) == ["0001.jpg"]


async def test_there_are_only_so_many(
    folder: AnalysisFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHOTS", 2)
    screen = Screen([picture(RED), picture(BLUE)] * 3)
    await look_at(screen, folder)

    assert screen.looks == 2


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"no picture",
        b"P6\n999999999 999999999\n255\n",
        b"P6\n-1 5\n255\n",
        picture(RED)[:-20],
        picture(RED, "PNG")[:40],
        picture(RED, "BMP"),
        picture(RED, "GIF"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png_of(60_000, 60_000),
        png_of(5000, 5000),
    ],
    ids=[
        "empty", "text", "huge-ppm", "negative", "cut-ppm", "cut-png", "bmp", "gif", "eps",
        "bomb", "large",
    ],
)  # fmt: skip
async def test_what_is_no_plain_picture_ends_the_series(
    folder: AnalysisFolder, hostile: bytes
) -> None:
    assert await shots(folder, picture(RED), hostile, picture(BLUE)) == ["0001.jpg"]


async def test_without_the_capability_nobody_looks(folder: AnalysisFolder) -> None:
    screen = Screen([picture(RED)])
    screen.capabilities = Capability.NONE
    await look_at(screen, folder)

    assert screen.looks == 0


async def test_a_stop_leaves_no_half_picture(folder: AnalysisFolder) -> None:
    class Waits(Screen):
        async def screenshot(self, path: Path) -> None:
            path.write_bytes(b"half")
            self.looks += 1
            await asyncio.Event().wait()

    screen = Waits([])
    looking = asyncio.create_task(look_at(screen, folder))
    while not screen.looks:
        await asyncio.sleep(0)
    looking.cancel()
    await asyncio.wait({looking})

    assert list((folder.path / "shots").iterdir()) == []
