"""Which base this is: a fingerprint of the files, and a full hash of the tensors in memory.

``fingerprint`` identifies a base cheaply and is written into every routed model. ``tensors_hash``
proves that a base in memory was not changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import nn

from asr.base.checkpoint import check_checkpoint, weight_files
from asr.errors import BaseModelError

_WINDOWS: Final = 64  # pieces read from every tensor ...
_WINDOW_BYTES: Final = 256  # ... of this many bytes

# Keys of config.json that do not change what the model computes from its tensors: who wrote the
# file, under which dtype it would be loaded (the tensors' own dtypes are hashed), which wrapper
# class, and switches of the forward call.
_CONFIG_LEFT_OUT: Final = frozenset(
    {
        "architectures",
        "dtype",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def fingerprint(path: Path) -> str:
    """Return the fingerprint of a checkpoint folder: 64 hexadecimal digits.

    It covers ``config.json`` without the keys that do not change what the model computes (those
    above and every key that starts with an underscore, such as ``_name_or_path``; in nested configs
    too), and of every tensor its name, shape, dtype and bytes: all of them up to 16 KiB, else 64
    windows of 256 bytes spread evenly from the first byte to the last. How tensors are spread over
    files does not matter; nor does the folder's name, its tokenizer or its generation config.

    A change that touches no window of a large tensor is not seen: this tells bases apart, it does
    not detect tampering. A folder re-saved by a transformers version that spells ``config.json``
    differently is another base.

    Args:
        path: a folder with ``config.json`` and safetensors weights.

    Raises:
        BaseModelError: the folder is no usable checkpoint, or a weights file is damaged.
    """
    check_checkpoint(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(b"asr-base-fingerprint-1\n")
    digest.update(_canonical(_without_noise(config)))
    tensors: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for file in weight_files(path):
        start, header = _read_header(file)
        for name, entry in header.items():
            tensors[name] = (file, start, entry)
    for name in sorted(tensors):
        file, start, entry = tensors[name]
        begin, end = entry["data_offsets"]
        digest.update(_canonical([name, entry["dtype"], entry["shape"]]))
        with file.open("rb") as stream:
            for window in _windows(stream, start + begin, end - begin, file):
                digest.update(window)
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _without_noise(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {
        key: _without_noise(value)
        for key, value in config.items()
        if key not in _CONFIG_LEFT_OUT and not key.startswith("_")
    }


def _read_header(file: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return where a safetensors file's data starts and its entries by tensor name.

    The format: 8 bytes little-endian header length, the header as JSON, then the data.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if 8 + length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        last = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"'{file}' is not a safetensors file ({error}); copy or download it again"
        ) from error
    if 8 + length + last > size:
        raise BaseModelError(
            f"'{file}' is cut off: {size} bytes of {8 + length + last}; copy or download it again"
        )
    return 8 + length, header


def _windows(stream: BinaryIO, start: int, size: int, file: Path) -> Iterator[bytes]:
    """Yield all bytes of a small tensor, or evenly spaced windows of a large one."""
    if size <= _WINDOWS * _WINDOW_BYTES:
        offsets, length = [0], size
    else:
        room = size - _WINDOW_BYTES
        offsets = [room * index // (_WINDOWS - 1) for index in range(_WINDOWS)]
        length = _WINDOW_BYTES
    for offset in offsets:
        stream.seek(start + offset)
        yield stream.read(length)


def tensors_hash(model: nn.Module) -> str:
    """Return the sha256 of all of a base's tensors in memory: 64 hexadecimal digits.

    Covers name, shape, dtype and every byte of each parameter and each buffer that a checkpoint
    would hold, in name order, each once (tied weights under their first name). Adapters do not
    count: a model wrapped by PEFT hashes as the bare base inside it. So the hash is the same before
    and after a domain exactly if the base is.

    Left out: buffers that are not saved (rotary frequencies are recomputed from the config, and
    some rotary types rewrite them during a forward pass), and the scales that bitsandbytes keeps
    beside its quantised parameters.

    Raises:
        BaseModelError: a tensor has no data in memory (meta device or offloaded).
    """
    digest = hashlib.sha256(b"asr-tensors-hash-1\n")
    for name, tensor in sorted(_base_tensors(model), key=lambda pair: pair[0]):
        if tensor.is_meta:
            raise BaseModelError(
                f"cannot hash the base: '{name}' is not in memory (meta device or offloaded); load "
                f"the model without offloading"
            )
        shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        digest.update(_canonical([name, dtype, shape]))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _base_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the base's parameters and saved buffers under the names of the bare base.

    A module that has a ``base_layer`` (PEFT's tuner layers) contributes that only; one that has an
    ``original_module`` (PEFT's ``modules_to_save``) contributes that only.
    """
    seen: set[int] = set()
    unwrap = getattr(model, "get_base_model", None)
    if hasattr(model, "peft_config") and callable(unwrap):
        model = unwrap()  # a PeftModel: its prompt encoders are adapters too

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        below = dict(module.named_children())
        for wrapped in ("base_layer", "original_module"):
            if wrapped in below:
                yield from walk(below[wrapped], prefix)
                return
        # The private attribute is the only place where torch says which buffers are saved.
        unsaved = module._non_persistent_buffers_set
        own: list[tuple[str, torch.Tensor]] = list(module.named_parameters(recurse=False))
        own += [pair for pair in module.named_buffers(recurse=False) if pair[0] not in unsaved]
        for name, tensor in own:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield prefix + name, tensor
        for name, child in below.items():
            yield from walk(child, f"{prefix}{name}.")

    yield from walk(model, "")
