"""Checkpoint folders: which ones are usable, how a GGUF file becomes one, and the cache of them.

A *checkpoint folder* is what ``save_pretrained`` of transformers writes: ``config.json``,
safetensors weights and a tokenizer. Everything above this module reads such folders only.

The cache is ``ASR_CACHE`` (default ``~/.cache/asr``)::

    <cache>/bases/<key>/                 a published checkpoint folder with its asr_origin.json
    <cache>/bases/.<key>.lock            held while one process builds <key>
    <cache>/bases/.<key>.tmp-<pid>/      being built; whatever a killed process left is swept

A folder is built beside its final place and renamed, so that what stands under ``<key>`` is whole.

Left out on purpose: pickled weights (``.bin``, ``.pt``) are never opened, whatever the caller says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from asr.errors import BaseModelError, StorageError, first_line

Progress = Callable[[str], None]

ORIGIN_FILE: Final = "asr_origin.json"
INDEX_FILE: Final = "model.safetensors.index.json"
WEIGHTS_FILE: Final = "model.safetensors"
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt"})
_REFUSED_WRITES: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
)


def silent(message: str) -> None:
    """Take a progress message and print nothing (the default of every ``progress`` argument)."""


# --- which folders are usable ---------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder, sorted by name.

    Raises:
        BaseModelError: no weights under the names transformers reads; only pickled weights; an
            index that is not JSON or no index, or that names a file which is missing.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise BaseModelError(f"{index} has no weight_map; copy or download the folder again")
        shards = sorted({str(name) for name in named.values()})
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            absent = ", ".join(missing) or "every shard"
            raise BaseModelError(
                f"base '{folder}' is incomplete: {INDEX_FILE} names {len(shards)} files and "
                f"misses {absent}; copy or download the folder again"
            )
        return [folder / name for name in shards]
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    pickled = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
    if pickled:
        raise BaseModelError(
            f"base '{folder}' holds pickled weights only ({pickled[0]}), which can run code and "
            f"are not loaded; convert it once where you trust it: "
            f"AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained(NEW), "
            f"the same with AutoTokenizer, then pass NEW"
        )
    gguf = [name for name in names if name.endswith(".gguf")]
    hint = f"pass the file itself: {folder / gguf[0]}" if gguf else f"it needs {WEIGHTS_FILE}"
    raise BaseModelError(
        f"base '{folder}' holds no safetensors weights (neither {WEIGHTS_FILE} nor "
        f"{INDEX_FILE}); {hint}; there are: {', '.join(names) or 'no files'}"
    )


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that is no base checkpoint, naming what it is instead.

    Raises:
        BaseModelError: a LoRA adapter folder; a routed model directory; no ``config.json`` or one
            that is not a JSON object; anything that :func:`weight_files` refuses.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
            of = (
                f" of '{base}'; pass that as the base"
                if base
                else "; pass the base it was made for"
            )
            raise BaseModelError(f"'{folder}' is a LoRA adapter, not a base: an adapter{of}")
        if (folder / "manifest.json").is_file():
            raise BaseModelError(
                f"'{folder}' is a routed model directory, not a base; its base is named in "
                f"{folder / 'manifest.json'}"
            )
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        raise BaseModelError(
            f"base '{folder}' has no config.json; pass a folder that save_pretrained wrote; "
            f"there is: {names}"
        )
    _read_json(folder / "config.json")
    weight_files(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BaseModelError(f"{path} is not JSON: {error}; copy the folder again") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} is not a JSON object; copy the folder again")
    return value


# --- the cache ------------------------------------------------------------------------------------


def cache_root() -> Path:
    """Return the cache folder: ``ASR_CACHE``, else ``~/.cache/asr``. Nothing is created."""
    named = os.environ.get("ASR_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "asr"


def cached(key: str) -> Path | None:
    """Return the published checkpoint folder of ``key``, or None when there is no whole one."""
    folder = cache_root() / "bases" / key
    if not (folder / ORIGIN_FILE).is_file():
        return None
    try:
        check_checkpoint(folder)
    except BaseModelError:
        return None  # somebody removed files from it: it is built again, under the lock
    return folder


def origin(folder: Path) -> dict[str, Any]:
    """Return what :func:`build_cached` recorded about a cached folder (``asr_origin.json``)."""
    return _read_json(folder / ORIGIN_FILE)


def build_cached(
    key: str, make: Callable[[Path], dict[str, Any]], progress: Progress = silent
) -> Path:
    """Return the cached folder of ``key``, building it first if it is not there.

    One process builds at a time; the others wait (said through ``progress``) and use its result.

    Args:
        key: the folder's name in the cache.
        make: fills an empty folder with a checkpoint and returns what is known about its origin,
            which is written into ``asr_origin.json`` beside the weights.
        progress: takes one line at a time.

    Raises:
        StorageError: the cache cannot be written (full, read-only, no permission).
        BaseModelError: what ``make`` raises, or the folder that it made is no checkpoint.
    """
    there = cached(key)
    if there is not None:
        return there  # without the lock: a shared cache may be read-only
    bases = cache_root() / "bases"
    with storage_errors(bases):
        bases.mkdir(parents=True, exist_ok=True)
        lock = FileLock(bases / f".{key}.lock")
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            progress(f"waiting for another process that is preparing {key}")
            lock.acquire()
        try:
            done = cached(key)
            if done is not None:
                return done
            for stale in bases.glob(f".{key}.tmp-*"):  # we hold the lock: nobody is writing there
                shutil.rmtree(stale)
            building = bases / f".{key}.tmp-{os.getpid()}"
            building.mkdir()
            try:
                record = make(building)
                (building / ORIGIN_FILE).write_text(
                    json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8"
                )
                check_checkpoint(building)
                _settle(building)
                final = bases / key
                if final.exists():  # cached() found it, and found it not whole
                    shutil.rmtree(final)
                os.replace(building, final)
            finally:
                shutil.rmtree(building, ignore_errors=True)
            return final
        finally:
            lock.release()


@contextlib.contextmanager
def storage_errors(folder: Path, variable: str = "ASR_CACHE") -> Iterator[None]:
    """Turn a refused write into one line.

    Args:
        folder: where is written, for the message.
        variable: the environment variable that names another place for it.

    Raises:
        StorageError: for an OSError that says full, over quota, read-only, no permission or no
            folder; also where safetensors wraps it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _os_error_code(error)
        if code not in _REFUSED_WRITES:
            raise
        raise StorageError(
            f"cannot write into '{folder}': {os.strerror(code)}; free some space or name another "
            f"cache folder with {variable}=FOLDER"
        ) from error


def _os_error_code(error: Exception) -> int:
    """Return the errno of a failed write; 0 where it has none.

    safetensors writes from Rust and keeps the number in its message only: ``(os error 28)``.
    """
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else 0


def _settle(folder: Path) -> None:
    """Give every file the mode that the umask asks for, and bring it to the disk.

    safetensors writes files that only their owner can read, which breaks a cache shared by a group.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            if path.stat().st_nlink == 1:  # a hard link into another cache keeps its mode
                path.chmod(0o666 & ~umask)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


# --- GGUF -----------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def gguf_quantisation(path: Path) -> str:
    """Return the tensor types of a GGUF file with their counts, e.g. ``Q4_1 x 210, F32 x 61``.

    Raises:
        BaseModelError: the file is no GGUF file, or a truncated one.
    """
    from gguf import GGUFReader

    try:
        types = Counter(str(t.tensor_type.name) for t in GGUFReader(str(path)).tensors)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise BaseModelError(
            f"'{path}' is not a readable GGUF file ({error}); download it again"
        ) from error
    return ", ".join(f"{name} x {count}" for name, count in types.most_common())


def convert_gguf(path: Path, folder: Path, progress: Progress = silent) -> dict[str, Any]:
    """Write a GGUF file as a bfloat16 checkpoint folder, with its tokenizer and chat template.

    The weights are the file's own, dequantised: where the file is quantised (Q4_1, Q8_0, ...) they
    differ from the model that was quantised, and so does the fingerprint.

    Args:
        path: the ``.gguf`` file.
        folder: an existing empty folder.
        progress: takes one line at a time.

    Returns:
        What is worth recording: quantisation, sha256 of the file, dtype, transformers version.

    Raises:
        BaseModelError: not a GGUF file, or an architecture that transformers cannot read from GGUF.
        StorageError: the folder cannot be written.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    kinds = gguf_quantisation(path)
    progress(f"converting {path.name} ({kinds}) to bfloat16 safetensors, once")
    try:
        with _quiet_transformers(), storage_errors(folder):
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
            _restore_digit_splitting(tokenizer, path)
            context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if context:  # GGUF tokenizers come without their context length
                tokenizer.model_max_length = context
            # The GGUF's training-run title would otherwise stand as the model's name.
            model.config._name_or_path = path.stem
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, ImportError) as error:
        reason = first_line(error)
        raise BaseModelError(
            f"transformers {transformers.__version__} cannot convert '{path}': {reason}; pass the "
            f"model as a safetensors folder or a hub id instead"
        ) from error
    return {
        "dtype": "bfloat16",
        "gguf_file": path.name,
        "gguf_sha256": file_sha256(path),
        "quantisation": kinds,
        "transformers": transformers.__version__,
    }


def _restore_digit_splitting(tokenizer: Any, path: Path) -> None:
    """Give SmolLM tokenizers back the digit splitting that transformers drops on reading GGUF.

    SmolLM splits off every digit before byte-level BPE. A GGUF file says so with
    ``tokenizer.ggml.pre = smollm``; transformers (5.23) builds the plain GPT-2 pre-tokenizer from
    it, which cuts runs of spaces before a digit differently from the tokenizer of the training.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(str(path)).get_field("tokenizer.ggml.pre")
    if field is None or field.contents() != "smollm":
        return
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' bars and warnings: the caller's ``progress`` tells the story."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
