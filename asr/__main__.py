"""``python -m asr``: the same as the ``asr`` command."""

from __future__ import annotations

from asr.cli.main import main

if __name__ == "__main__":
    main()
