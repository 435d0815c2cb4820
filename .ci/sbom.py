"""Write what an installation is made of: ``python .ci/sbom.py FILE [--pins FILE]``.

Looks at the environment that it runs in, which may hold more: of that, the server, its plugins and
all that they need are listed, as CycloneDX. ``--pins`` lists those from the index for pip-audit.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SERVER = "cuckoo-api-server"
OURS = (
    SERVER,
    *(f"cuckoo-machinery-{name}" for name in ("libvirt", "qemu", "virtualbox", "vsphere")),
)
LICENCES = {
    "libarchive-c": "CC0-1.0",
    "libvirt-python": "LGPL-2.1-or-later",
    "lief": "Apache-2.0",
    "py-tlsh": "Apache-2.0 OR BSD-3-Clause",
}
"""Of those whose metadata names none; as their sources do."""
VIEWER = ROOT / "src" / "cuckoo_api" / "http" / "viewer" / "swagger-ui"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pins", type=Path)
    arguments = parser.parse_args()
    bom = complete(environment(), needed())
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_text(json.dumps(bom, indent=2, sort_keys=True) + "\n")
    if arguments.pins:
        pins = [f"{part['name']}=={part['version']}\n" for part in from_index(bom)]
        arguments.pins.write_text("".join(pins))


def environment() -> dict[str, Any]:
    """All that is installed, as CycloneDX's own tool describes it."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cyclonedx_py", "environment", "--no-validate"),
            *("--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml")),
            sys.executable,
        ],
        check=True,
        stdout=subprocess.PIPE,
    )
    bom: dict[str, Any] = json.loads(done.stdout)
    return bom


def needed() -> set[str]:
    """The names of what the server and its plugins need, and what that needs, here."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in OURS]
    while waiting:
        name, extra = one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for line in distribution(name).requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                need_name = canonicalize_name(need.name)
                waiting += [(need_name, each) for each in ("", *need.extras)]
    return {name for name, _ in found}


def complete(bom: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Leave out what is not needed, and add what no metadata tells."""
    parts = [part for part in bom["components"] if canonicalize_name(part["name"]) in names]
    for part in parts:
        name = canonicalize_name(part["name"])
        if name in OURS:
            part.pop("externalReferences", None)  # where it lies on this machine
        if name in LICENCES:
            if part.get("licenses"):
                sys.exit(f"{name} tells its licence itself by now: take it out of LICENCES")
            part["licenses"] = [{"expression": LICENCES[name]}]
    bom["components"] = [*parts, swagger_ui()]
    kept = {part["bom-ref"] for part in bom["components"]} | {"root-component"}
    bom["dependencies"] = [
        {**edge, "dependsOn": [ref for ref in edge.get("dependsOn", ()) if ref in kept]}
        for edge in bom["dependencies"]
        if edge["ref"] in kept
    ]
    return bom


def swagger_ui() -> dict[str, Any]:
    """The one part that lies in this repository, from what is written beside it."""
    text = (VIEWER / "README.md").read_text(encoding="utf-8")
    found = re.match(r"Swagger UI ([0-9.]+), from the npm package `swagger-ui-dist`", text)
    if found is None:
        sys.exit(f"{VIEWER / 'README.md'} does not begin with the version")
    version = found[1]
    files = re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    return {
        "bom-ref": f"swagger-ui-dist=={version}",
        "name": "swagger-ui-dist",
        "version": version,
        "type": "library",
        "purl": f"pkg:npm/swagger-ui-dist@{version}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "components": [
            {"name": name, "type": "file", "hashes": [{"alg": "SHA-256", "content": digest}]}
            for name, digest in files
        ],
    }


def from_index(bom: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts that come from PyPI."""
    for part in bom["components"]:
        if part.get("purl", "").startswith("pkg:pypi/"):
            yield part


if __name__ == "__main__":
    main()
