from __future__ import annotations

import pytest

# so that a failed assertion of the suite shows what differed
pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")
