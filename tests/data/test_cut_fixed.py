"""The cuts that stored models were made with: these prompts, in this and every later version.

A model directory holds statistics of what was kept and the prompts that were held out. A cut that
moved would train on prompts that an earlier run keeps for scoring.
"""

from __future__ import annotations

from asr.data.cut import calibration_cut, dev_cut
from asr.data.formats import Example

DEV = [10, 18, 19, 27, 28, 34, 35, 36, 38, 42, 46]
CALIBRATION = [8, 11, 15, 17, 25, 31, 36, 37, 43, 49, 52, 53, 54]


def prompts(count: int) -> list[Example]:
    return [
        Example(
            ({"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "A"}),
            {},
            "x.jsonl:1",
        )
        for i in range(count)
    ]


def held_out(examples: tuple[Example, ...]) -> list[int]:
    return [int(e.messages[0]["content"].split()[1]) for e in examples]


def test_the_dev_cut_holds_out_these_prompts() -> None:
    assert held_out(dev_cut(prompts(60)).held_out) == DEV


def test_the_calibration_cut_holds_out_these_prompts() -> None:
    assert held_out(calibration_cut(prompts(60)).held_out) == CALIBRATION
