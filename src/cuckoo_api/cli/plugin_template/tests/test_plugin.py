"""The server finds the plugin."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from cuckoo_api.machinery import API_VERSION, PROJECT_NAME, BackendConfig, MachineryPlugin


def test_the_entry_point_describes_the_machinery(tmp_path: Path) -> None:
    [point] = entry_points(group=PROJECT_NAME, name="nameless")
    plugin = point.load().cuckoo_register_machinery()
    assert isinstance(plugin, MachineryPlugin)
    assert plugin.name == "nameless"
    assert plugin.api_version[0] == API_VERSION[0]
    assert "[nameless]" in plugin.default_conf
    options = {option.name: option.default for option in plugin.options}
    plugin.backend(BackendConfig("nameless", (), tmp_path, options))
