"""The demo: two domains trained in sequence on a real base, evaluated, and asked free questions.

Run as:  make demo        (or: python -m demo.run)

It only runs commands that you could type yourself, and prints each of them first. Everything it
writes lies in ``demo/out``. Stopped at any moment, it goes on from there when started again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from demo import domains
from demo.questions import QUESTIONS

OUT = Path("demo/out")
MODEL = OUT / "model"
CONFIG = Path("configs/demo.yaml")
TRAIN, TEST = 300, 60


def headline(text: str) -> None:
    """Print the title of a step."""
    print(f"\n== {text} {'=' * max(0, 76 - len(text))}\n", flush=True)


def asr(*arguments: str) -> None:
    """Print an ``asr`` command and run it; a failure ends the demo with its exit status."""
    shown = " ".join(f'"{a}"' if " " in a else a for a in arguments)
    print(f"$ asr {shown}\n", flush=True)
    finished = subprocess.run([sys.executable, "-m", "asr", *arguments], check=False)
    if finished.returncode != 0:
        sys.exit(finished.returncode)


def main() -> None:
    """Run all steps from the repository's root."""
    if not CONFIG.is_file():
        sys.exit("error: run the demo from the repository's root: python -m demo.run")
    began = time.perf_counter()
    headline("1. Data: two domains that the project makes itself")
    domains.write(OUT, train=TRAIN, test=TEST)
    for name in domains.DOMAINS:
        row = domains.make_domain(name, "test", 1)[0]["messages"]
        print(f"{name}: {TRAIN} training examples, {TEST} test examples, for instance")
        print(f"  user:      {row[0]['content'].splitlines()[-1]}")
        print(f"  assistant: {row[1]['content']}")

    headline("2. Train them in sequence: one adapter each, one router, one frozen base")
    asr("train", str(CONFIG), "--out", str(MODEL), "--resume")

    headline("3. Score them on prompts that training never saw, with and without the instruction")
    asr("eval", str(MODEL), "--split", "test")

    headline("4. Ask in your own words: the router picks the adapter, or none")
    asr("generate", str(MODEL), *[question.text for question in QUESTIONS])

    minutes = (time.perf_counter() - began) / 60
    headline(f"Done in {minutes:.1f} minutes")
    print("Next:")
    print(f"  asr chat {MODEL}                      talk to it; each turn shows its route")
    print(f"  asr info {MODEL}                      what is in the model directory")
    print(f"  asr add {MODEL} mine=mine.jsonl       a domain of your own; no other is touched")


if __name__ == "__main__":
    main()
