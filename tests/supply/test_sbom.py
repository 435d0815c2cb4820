"""The list of what an installation is made of, and that what the project declares is true."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "sbom.py"
PLUGINS = ("libvirt", "qemu", "virtualbox", "vsphere")
PACKAGES = {
    "cuckoo-api-server": (ROOT, "cuckoo_api"),
    **{
        f"cuckoo-machinery-{name}": (
            ROOT / "plugins" / f"cuckoo-machinery-{name}",
            f"cuckoo_machinery_{name}",
        )
        for name in PLUGINS
    },
}
LOOKED_AT = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "LGPL-2.1-or-later", "LGPL-3.0-or-later",
    "License :: OSI Approved :: Apache Software License", "License :: OSI Approved :: BSD License",
    "License :: Public Domain",
}  # fmt: skip
"""Licences of what may be used by a project under the Apache License."""
LOOKED_AT_ALONE = {
    # its library is under the LGPL; of the GPL is a module that nothing here loads
    "qemu-qmp": {
        "GPL-2.0-only",
        "License :: OSI Approved :: GNU Lesser General Public License v2 or later (LGPLv2+)",
    },
    "pyroute2": {"GPL-2.0-or-later"},  # or Apache-2.0, which is taken
}
BROUGHT = {"yarl", "markupsafe", "pytest"}
"""Part of what another one offers: of aiohttp, jinja2; and the extra ``testing``'s."""
LOADED = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        # what runs elsewhere, or begins to work when it is loaded
        parts = module.name.split(".")
        if not {"payload", "plugin_template", "migrations", "__main__"}.intersection(parts):
            importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def bom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sbom")
    command = (sys.executable, SCRIPT, folder / "sbom.json", "--pins", folder / "pins.txt")
    subprocess.run(command, check=True)
    made: dict[str, Any] = json.loads((folder / "sbom.json").read_bytes())
    made["pins"] = (folder / "pins.txt").read_text()
    return made


@pytest.fixture(scope="module")
def parts(bom: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {canonicalize_name(part["name"]): part for part in bom["components"]}


def without(value: Any, *keys: str) -> Any:
    if isinstance(value, dict):
        return {k: without(v, *keys) for k, v in value.items() if k not in keys}
    return [without(each, *keys) for each in value] if isinstance(value, list) else value


distributions = cache(packages_distributions)


def declared(folder: Path) -> list[Requirement]:
    text = (folder / "pyproject.toml").read_text()
    return [Requirement(line) for line in tomllib.loads(text)["project"]["dependencies"]]


def licences(part: dict[str, Any]) -> set[str]:
    """Every single licence that a part names."""
    found: set[str] = set()
    for each in part.get("licenses", ()):
        if expression := each.get("expression"):
            found |= {word.strip("() ") for word in re.split(r" (?:AND|OR|WITH) ", expression)}
        else:
            found.add(each["license"].get("id") or each["license"]["name"])
    return found


def test_it_is_cyclonedx(bom: dict[str, Any]) -> None:
    # but for the addresses, of which the schema takes half a second each
    plain = without(bom, "externalReferences", "pins")
    text = json.dumps(plain)
    assert JsonValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert bom["metadata"]["component"]["name"] == "cuckoo-api-server"


def test_all_that_the_server_and_its_plugins_load_is_in_it_with_its_version(
    parts: dict[str, dict[str, Any]],
) -> None:
    names = [package for _, package in PACKAGES.values()]
    code = (sys.executable, "-I", "-c", LOADED, *names)
    loaded = json.loads(subprocess.run(code, check=True, stdout=subprocess.PIPE).stdout)
    # the conformance suite's, and what setuptools puts into every process where it is installed
    tests_own = {"pytest", "_pytest", "iniconfig", "py", "pytest_asyncio", "_distutils_hack"}
    of_module = distributions()
    found = {
        canonicalize_name(name)
        for module in set(loaded) - tests_own
        for name in of_module.get(module, ())
    }
    assert {"aiohttp", "sqlalchemy", "yara-x", "pyvmomi"} <= found
    assert found - {"cuckoo-api-server"} <= set(parts)
    for name in found - {"cuckoo-api-server"}:
        assert parts[name]["version"] == version(name), name


def test_what_only_tests_need_is_not_in_it(parts: dict[str, dict[str, Any]]) -> None:
    assert {"pytest", "hypothesis", "hatchling", "cyclonedx-bom", "pip"}.isdisjoint(parts)


def test_nothing_of_this_machine_is_in_it(bom: dict[str, Any]) -> None:
    text = json.dumps(bom)
    assert str(ROOT) not in text
    assert "file://" not in text
    assert "timestamp" not in text


def test_each_part_names_a_licence_that_somebody_has_looked_at(
    parts: dict[str, dict[str, Any]],
) -> None:
    for name, part in parts.items():
        found = licences(part)
        assert found, f"{name} names none: look, and write it down in .ci/sbom.py"
        texts = {each for each in found if "Mozilla" not in each}
        assert texts <= LOOKED_AT | LOOKED_AT_ALONE.get(name, set()), name


def test_the_part_that_lies_in_the_repository_is_in_it_with_its_files(
    parts: dict[str, dict[str, Any]],
) -> None:
    viewer = parts["swagger-ui-dist"]
    assert viewer["purl"] == f"pkg:npm/swagger-ui-dist@{viewer['version']}"
    folder = ROOT / "src" / "cuckoo_api" / "http" / "viewer" / "swagger-ui"
    files = {file["name"]: file["hashes"][0]["content"] for file in viewer["components"]}
    assert files == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix in {".js", ".css"}
    }


def test_the_audit_is_asked_of_each_part_from_the_index(
    bom: dict[str, Any], parts: dict[str, dict[str, Any]]
) -> None:
    pins = dict(line.split("==") for line in bom["pins"].splitlines())
    ours = {*PACKAGES, "swagger-ui-dist"}
    assert {canonicalize_name(name) for name in pins} == set(parts) - ours


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_imported_is_declared(name: str) -> None:
    folder, package = PACKAGES[name]
    expected = {canonicalize_name(each.name) for each in declared(folder)}
    assert imported(folder / "src" / package) - {name, *BROUGHT} <= expected


def test_what_the_server_declares_is_imported() -> None:
    folder, package = PACKAGES["cuckoo-api-server"]
    expected = {canonicalize_name(each.name) for each in declared(folder)}
    assert expected <= imported(folder / "src" / package)


@cache
def imported(folder: Path) -> set[str]:
    """The distributions that a package's modules name in their imports."""
    of_module = {**distributions(), "cuckoo_api": ["cuckoo-api-server"]}
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        if {"payload", "plugin_template"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for each in names:
                found |= set(of_module.get(each.partition(".")[0], ()))
    return {canonicalize_name(each) for each in found}


@pytest.mark.parametrize("name", PACKAGES)
def test_each_has_a_lowest_version_and_what_is_tested_is_allowed(name: str) -> None:
    for need in declared(PACKAGES[name][0]):
        if need.name not in PACKAGES:
            assert [each for each in need.specifier if each.operator == ">="], need
        assert need.specifier.contains(version(need.name)), need
