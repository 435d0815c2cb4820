"""``python -m cuckoo_api`` is ``cuckoo``."""

from __future__ import annotations

import sys

from cuckoo_api.cli import main

if __name__ == "__main__":
    sys.exit(main())
