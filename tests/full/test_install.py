"""What is published: it builds, is complete, and is installed by pipx as a user installs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from bootkit import pack
from freshenv import ROOT, declared, link, needed, run
from packaging.requirements import Requirement
from serverkit import Namespace, Site, configure

from cuckoo_api.store import upgrade
from cuckoo_api.store.schema import HEAD
from pagekit import Reader

PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
PACKAGES = {"cuckoo-api-server": ROOT, **{name: ROOT / "plugins" / name for name in PLUGINS}}
PAGE = "docs/install.md"
EARLIER = "0.0.9"
TASK = """
INSERT INTO tasks (category, target, status, added_on)
VALUES ('url', 'http://kept.test/', 'reported', '2026-01-01 00:00:00')
"""
MACHINE = """
[one]
label = one
platform = linux
ip = 192.168.55.11
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source archive of each package."""
    folder = tmp_path_factory.mktemp("dist")
    for path in PACKAGES.values():
        build(path, folder)
    return folder


def build(source: Path, into: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(into), *targets]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def the(dist: Path, name: str, suffix: str) -> Path:
    [path] = dist.glob(f"{name.replace('-', '_')}-*{suffix}")
    return path


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", PACKAGES)
def test_the_source_archive_builds_the_same_wheel(dist: Path, tmp_path: Path, name: str) -> None:
    with tarfile.open(the(dist, name, ".tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    build(source, tmp_path / "again", "--target", "wheel")
    wheel = content(the(dist, name, ".whl"))
    assert content(the(tmp_path / "again", name, ".whl")) == wheel
    assert any(path.endswith("/licenses/LICENSE") for path in wheel)
    [metadata] = [text for path, text in wheel.items() if path.endswith("/METADATA")]
    assert b"License-Expression: Apache-2.0" in metadata
    assert b"Requires-Python: >=3.11" in metadata


def test_the_wheel_has_all_that_the_package_has(dist: Path) -> None:
    wheel = content(the(dist, "cuckoo-api-server", ".whl"))
    for top, place in (
        (ROOT / "src" / "cuckoo_api", "cuckoo_api"),
        (ROOT / "conf", "cuckoo_api/conf"),
    ):
        for path in top.rglob("*"):
            inner = path.relative_to(top)
            if path.is_file() and not any(part.startswith((".", "__py")) for part in inner.parts):
                assert wheel[f"{place}/{inner}"] == path.read_bytes()


def relabel(wheel: Path, into: Path, version: str) -> None:
    """Make the wheel one of another version, which has the same code."""
    name, now, tag = wheel.name.split("-", 2)
    target = into / f"{name}-{version}-{tag}"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w") as new:
        for path in old.namelist():
            content = old.read(path)
            if ".dist-info/" in path:
                for words in ("Version: {}\n", f"{name}-{{}}.dist-info/"):
                    before, after = (words.format(one).encode() for one in (now, version))
                    content = content.replace(before, after)
            new.writestr(path.replace(f"{name}-{now}.", f"{name}-{version}."), content)


@pytest.fixture
def index(dist: Path, tmp_path: Path) -> Path:
    """What a package index has: earlier versions of ours, and all that they need as it is here."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lines = [line for path in PACKAGES.values() for line in declared(path)]
    for name in needed(line for line in lines if Requirement(line).name not in PACKAGES):
        pack(distribution(name), wheels)
    for wheel in dist.glob("*.whl"):
        relabel(wheel, wheels, EARLIER)
    return wheels


@pytest.fixture
def reader(index: Path, tmp_path: Path) -> Iterator[Reader]:
    """Somebody with pipx and that index."""
    programs = f"{tmp_path}/reader/home/.local/bin:{Path(sys.executable).parent}"
    with Reader(
        tmp_path / "reader",
        environment={
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_FIND_LINKS": str(index),
            # compiled it is when it is run: most of it never is
            "PIP_NO_COMPILE": "1",
            **{f"PIP_{word}": "0" for word in ("DRY_RUN", "NO_DEPS")},
        },
    ) as made:
        bring_pip(made.home / ".local/share/pipx/shared")
        yield made


def bring_pip(folder: Path) -> None:
    """What pipx has done by its first use: one pip for all its environments."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    [site] = folder.glob("lib/python*/site-packages")
    link(distribution("pip"), site)
    (folder / "bin/pip").touch()


def put_an_old_database(path: Path) -> None:
    """As the version left it whose schema came before this one's, with one task."""
    config = Config()
    config.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, f"{int(HEAD) - 1:04}")
        connection.execute(sa.text(TASK))
    engine.dispose()


async def test_the_page_leads_from_the_first_install_to_an_upgrade_that_keeps_all(
    dist: Path, index: Path, reader: Reader, namespace: Namespace
) -> None:
    cwd = reader.home / ".cuckoo"
    reader.follow(PAGE, "Debian's packages")
    assert "Inst pipx" in reader.said or "pipx is already" in reader.said
    reader.follow(PAGE, "With pipx")
    assert f"cuckoo-api-server {EARLIER}\n" in reader.said
    assert {path.stem for path in (cwd / "conf").glob("*.conf")} >= {"cuckoo", "qemu", "routing"}
    configure(cwd, "cuckoo", {"cuckoo.machinery": "qemu", "cuckoo.freespace": "64"})
    configure(cwd, "qemu", {"qemu.machines": "one"})
    with (cwd / "conf" / "qemu.conf").open("a") as file:
        file.write(MACHINE)
    put_an_old_database(cwd / "cuckoo.db")

    for wheel in dist.glob("*.whl"):
        shutil.copy(wheel, index)
    reader.follow(PAGE, "Upgrade")
    assert "upgraded package cuckoo-api-server from 0.0.9 to 0.1.0" in reader.said, reader.said
    python = str(reader.home / ".local/share/pipx/venvs/cuckoo-api-server/bin/python")
    checked = run(sys.executable, "-m", "pip", "--python", python, "check")
    assert "No broken requirements found" in checked
    site = Site(cwd, namespace, python=python)
    await site.start()
    try:
        [machine] = (await site.get("/machines/list"))["machines"]
        assert (machine["name"], machine["manager"]) == ("one", "qemu")
        task = (await site.get("/tasks/view/1"))["task"]
        assert (task["target"], task["status"]) == ("http://kept.test/", "reported")
    finally:
        await site.stop()
    await namespace.empty()
