"""Which backend has which capability, as docs/machinery.md shows it: asked of the backends.

    python -m tests.supportmatrix      writes it to the page

Every distribution under plugins/ has a column, installed or not. Its backend is made, which by
the contract connects to nothing; a binding that it needs for that has to be there.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

from cuckoo_api.machinery import PROJECT_NAME, BackendConfig, Capability, MachineryPlugin
from cuckoo_api.testing.fake import FakeHypervisor, fake_plugin

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "machinery.md"
BEGIN = "<!-- by python -m tests.supportmatrix -->\n"
END = "<!-- to here -->\n"


def plugins() -> Iterator[MachineryPlugin]:
    """Those under plugins/ by their entry points, then the fake."""
    for project in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        sys.path.append(str(project.parent / "src"))  # last: an installed one comes before it
        described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        for name, value in described["entry-points"][PROJECT_NAME].items():
            module = EntryPoint(name, value, PROJECT_NAME).load()
            yield module.cuckoo_register_machinery()
    yield fake_plugin(FakeHypervisor()).cuckoo_register_machinery()


def capabilities() -> dict[str, Capability]:
    """What each backend declares, by its machinery's name."""
    found = {}
    for plugin in plugins():
        options = {option.name: option.default for option in plugin.options}
        backend = plugin.backend(BackendConfig(plugin.name, (), Path(), options))
        found[plugin.name] = backend.capabilities
    return found


def matrix() -> str:
    """The table, in Markdown."""
    declared = capabilities()
    rows = [["Capability", *(f"`{name}`" for name in declared)], ["---"] * (len(declared) + 1)]
    rows += [
        [f"`{flag.name}`", *("yes" if flag in can else "no" for can in declared.values())]
        for flag in Capability
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace(" --- ", "---")


def with_matrix(text: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{PAGE} has lost its marks"
    return f"{before}{BEGIN}\n{matrix()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_matrix(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
