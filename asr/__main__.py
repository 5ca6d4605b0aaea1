"""``python -m asr``: the same as the ``asr`` command."""

from __future__ import annotations

import sys

from asr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
