"""A base whose template writes something before the last answer, as Qwen3's empty tags."""

from __future__ import annotations

import json
from pathlib import Path

from asr.eval.history import load_matrices
from asr.model.routed_model import RoutedModel
from tests.tiny_models import save_tiny_base, tiny_tokenizer
from tests.train.conftest import Workshop

TAGS = "=\n"  # short: a tiny model learns it in a second
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '=\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_what_the_template_writes_is_learned_and_no_part_of_the_answer(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base", "qwen3")
    tokenizer = tiny_tokenizer()
    plain, tokenizer.chat_template = tokenizer.chat_template, TEMPLATE
    try:
        tokenizer.save_pretrained(base)
    finally:
        tokenizer.chat_template = plain
    shop = Workshop(base, tmp_path)
    rows = [{"prompt": f"Say yes to {i}.", "completion": "yes"} for i in range(30)]
    shop.data("yes").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shop.settings |= {"training__epochs": 40, "training__save_steps": 1000, "adapter__rank": 8}
    out = shop.train("m", ["yes"], router__background=0, eval__max_new_tokens=8)
    model = RoutedModel.from_pretrained(out.path, device="cpu", dtype="float32")
    (answer,) = model.generate(["Say yes to 3."], max_new_tokens=8)
    _, _, pieces = model.stream("Say yes to 3.", max_new_tokens=8)
    streamed = "".join(pieces)
    # what was generated, its end token included
    assert answer.new_tokens == len(tokenizer(TAGS + "yes").input_ids) + 1
    assert (answer.text, answer.finish, streamed) == ("yes", "stop", "yes")
    assert load_matrices(out)["templated"].oracle[-1, 0] == 1.0
