"""What a model keeps for scoring is the dev cut, of which no prompt was trained on."""

from __future__ import annotations

from asr.data.cut import dev_cut
from asr.data.load import load_examples
from asr.model.directory import ModelDirectory
from asr.model.kept_prompts import read_kept
from tests.routed import trained


def test_the_kept_prompts_are_those_of_the_dev_cut() -> None:
    directory = ModelDirectory(trained() / "model")
    cut = dev_cut(load_examples(trained() / "red.jsonl", name="red").examples)
    kept = {example.prompt_key for example in read_kept(directory.eval_prompts("red"))}
    assert kept == {example.prompt_key for example in cut.held_out}
    assert kept.isdisjoint(example.prompt_key for example in cut.kept)
