"""Runs one sample in a Linux guest, records what it does and sends the results to the host.

The agent starts this file, with ``analysis.conf`` beside it. The sample and all its descendants
run under strace; the trace goes to the result server while it is written, so that a guest that
dies still leaves what it had. Needs Python 3.6 and strace.
"""

import os
import sys

from analysis import main

if __name__ == "__main__":
    sys.exit(main(os.path.dirname(os.path.abspath(__file__))))
