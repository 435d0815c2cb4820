"""What is published: it builds, is complete, and is installed by pipx as a user installs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from freshenv import ROOT, declared, needed, run
from packaging.requirements import Requirement
from serverkit import Namespace, Site, configure

from pagekit import Reader

PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir())
PACKAGES = {"cuckoo-api-server": ROOT, **{name: ROOT / "plugins" / name for name in PLUGINS}}
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


def rebuild(package: Distribution, into: Path) -> None:
    """Make the wheel of an installed package once more."""
    tags = re.findall(r"^Tag: (\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
    name = re.sub(r"[-_.]+", "_", package.metadata["Name"])
    with zipfile.ZipFile(into / f"{name}-{package.version}-{tag}.whl", "w") as archive:
        for file in package.files or ():
            # scripts are made anew, and so is what Python compiles
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(str(package.locate_file(file)), str(file))


@pytest.fixture
def pipx(dist: Path, tmp_path: Path) -> Path:
    """A folder of commands into which pipx has installed the server and all plugins.

    No index is asked: what they need is there as it is in the running environment.
    """
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lines = [line for path in PACKAGES.values() for line in declared(path)]
    for name in needed(line for line in lines if Requirement(line).name not in PACKAGES):
        rebuild(distribution(name), wheels)
    environment = os.environ | {
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
    }
    # compiled it is when it is run: most of it never is
    pip = f"--pip-args=--no-index --no-compile --find-links={wheels} --find-links={dist}"

    def do(*words: str) -> None:
        command = [sys.executable, "-m", "pipx", *words, pip]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    do("install", str(the(dist, "cuckoo-api-server", ".whl")))
    do("inject", "cuckoo-api-server", *PLUGINS)
    return tmp_path / "bin"


async def test_pipx_installs_the_server_and_its_plugins(
    pipx: Path, tmp_path: Path, namespace: Namespace
) -> None:
    python = str(tmp_path / "pipx" / "venvs" / "cuckoo-api-server" / "bin" / "python")
    checked = run(sys.executable, "-m", "pip", "--python", python, "check")
    assert "No broken requirements found" in checked

    cuckoo, cwd = str(pipx / "cuckoo"), tmp_path / "cwd"
    assert run(cuckoo, "--version") == "cuckoo-api-server 0.1.0\n"
    run(cuckoo, "--cwd", str(cwd), "init")
    assert {path.stem for path in (cwd / "conf").glob("*.conf")} >= {
        *("cuckoo", "qemu", "kvm", "virtualbox", "vsphere", "routing"),
    }
    configure(cwd, "cuckoo", {"cuckoo.machinery": "qemu", "cuckoo.freespace": "64"})
    configure(cwd, "qemu", {"qemu.machines": "one"})
    with (cwd / "conf" / "qemu.conf").open("a") as file:
        file.write(MACHINE)
    site = Site(cwd, namespace, python=python)
    await site.start()
    try:
        [machine] = (await site.get("/machines/list"))["machines"]
        assert (machine["name"], machine["manager"]) == ("one", "qemu")
        shown = run(*namespace.inside(cuckoo, "--cwd", str(cwd), "api", "--systemd"))
        assert python in shown or cuckoo in shown
    finally:
        await site.stop()
    await namespace.empty()


def test_the_page_names_packages_that_debian_has(tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        reader.follow("docs/install.md")
        assert "Inst pipx" in reader.said or "pipx is already" in reader.said
