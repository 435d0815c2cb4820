"""Fixtures of the tests that need no VirtualBox."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")
