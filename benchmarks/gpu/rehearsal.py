"""Tiny stand-ins: a random base of two thousand parameters' width, and two made-up domains.

For a rehearsal of the whole command on a machine without a GPU, and for a first quick one on a
machine with it.
"""

from __future__ import annotations

import json
from pathlib import Path

from demo.domains import make_domain

DOMAINS = {"arithmetic": 36, "dates": 36}
"""Domains of the demo, and training examples of each; a third as many tests."""


def write_rehearsal(work: Path) -> tuple[str, str]:
    """Write base and data; their folders."""
    from tests.tiny_models import save_tiny_base

    base, data = work / "tiny-base", work / "tiny-data"
    save_tiny_base(base)
    for domain, count in DOMAINS.items():
        folder = data / domain
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in (("train", count), ("test", count // 3)):
            made = make_domain(domain, split, rows)  # type: ignore[arg-type]
            lines = [json.dumps({"messages": row["messages"]}) for row in made]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(base), str(data)
