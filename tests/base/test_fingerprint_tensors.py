"""No tensor of a base is left out of its fingerprint or of its hash in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from asr.base.fingerprint import fingerprint, tensors_hash
from tests.tiny_models import save_tiny_base, tiny_model


def test_each_tensor_of_the_files_counts(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    seen = {fingerprint(base)}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[0] += 1
        save_file({**tensors, name: changed}, file, metadata={"format": "pt"})
        seen.add(fingerprint(base))
    assert len(tensors) > 30
    assert len(seen) == 1 + len(tensors)


def test_the_last_number_of_each_tensor_in_memory_counts() -> None:
    model = tiny_model("gpt2")
    seen = {tensors_hash(model)}
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.view(-1)[-1] += 1
            seen.add(tensors_hash(model))
    assert len(seen) == 1 + len(parameters)
