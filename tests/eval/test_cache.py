"""The evaluation cache: keys, round trips, and files that a kill or a bad disk left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.errors import StorageError
from asr.eval.cache import (
    CachedLoss,
    CachedText,
    EvalCache,
    forget_domain,
    loss_key,
    text_key,
)

SETTINGS = {"max_new_tokens": 20, "dtype": "float32"}


def filled(path: Path, count: int = 3) -> list[str]:
    keys = [text_key("adapter", [i], SETTINGS) for i in range(count)]
    with EvalCache(path) as cache:
        for i, key in enumerate(keys):
            cache.put(key, CachedText(f"answer {i}\nline \u2028 two", "length"))
    return keys


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "cache.jsonl"
    keys = filled(path)
    loss = loss_key("adapter", [1, 2], [-100, 2], SETTINGS)
    with EvalCache(path) as cache:
        cache.put(loss, CachedLoss(2.5, 1))
    again = EvalCache(path)
    assert again.get(keys[1]) == CachedText("answer 1\nline \u2028 two", "length")
    assert again.get(loss) == CachedLoss(2.5, 1)
    assert again.get("absent") is None
    assert (len(again), again.skipped, again.torn) == (4, 0, False)


def test_keys_depend_on_everything_that_shapes_the_answer() -> None:
    same = text_key("a", [1, 2], {"x": 1, "y": 2})
    assert same == text_key("a", [1, 2], {"y": 2, "x": 1})
    others = {
        text_key("b", [1, 2], {"x": 1, "y": 2}),
        text_key("a", [2, 1], {"x": 1, "y": 2}),
        text_key("a", [1, 2, 0], {"x": 1, "y": 2}),
        text_key("a", [1, 2], {"x": 1, "y": 3}),
        loss_key("a", [1, 2], [1, 2], {"x": 1, "y": 2}),
        loss_key("a", [1, 2], [-100, 2], {"x": 1, "y": 2}),
    }
    assert len(others) == 6
    assert same not in others


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_torn_last_line_is_ignored_then_rewritten(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "cache.jsonl"
    keys = filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    cache = EvalCache(path)
    assert (len(cache), cache.torn, cache.skipped) == (2, True, 0)
    assert cache.get(keys[2]) is None
    cache.put(keys[2], CachedText("answer 2\nline \u2028 two", "length"))
    cache.flush()
    assert path.read_bytes() == whole


def test_a_file_that_is_one_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b'{"key": "ab')
    cache = EvalCache(path)
    assert (len(cache), cache.torn) == (0, True)
    cache.put("k", CachedText("x"))
    cache.flush()
    assert EvalCache(path).get("k") == CachedText("x")
    assert EvalCache(path).skipped == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\x00",
        b"",
        b"[1]",
        b"{}",
        b'{"key": 1, "kind": "text", "text": "a", "finish": "stop"}',
        b'{"key": "k", "kind": "text", "text": 3, "finish": "stop"}',
        b'{"key": "k", "kind": "loss", "sum_nll": NaN, "tokens": 2}',
        b'{"key": "k", "kind": "sound"}',
    ],
)
def test_a_damaged_middle_line_is_skipped_and_counted(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "cache.jsonl"
    keys = filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + b"\n" + lines[2])
    cache = EvalCache(path)
    assert (len(cache), cache.skipped, cache.torn) == (2, 1, False)
    assert cache.get(keys[0]) is not None
    assert cache.get(keys[1]) is None


def test_nothing_is_written_before_flush_and_equal_entries_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    cache = EvalCache(path)
    cache.put("k", CachedText("x"))
    cache.put("k", CachedText("x"))
    assert not path.exists()
    cache.flush()
    cache.flush()
    assert len(path.read_bytes().splitlines()) == 1
    cache.put("k", CachedText("y"))
    cache.flush()
    assert EvalCache(path).get("k") == CachedText("y")  # the later line holds


def test_what_was_put_survives_an_error_in_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"

    def interrupted() -> None:
        with EvalCache(path) as cache:
            cache.put("k", CachedText("x"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert EvalCache(path).get("k") == CachedText("x")


def test_a_failed_flush_names_the_file_and_keeps_what_was_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.jsonl"
    filled(path)
    whole = path.read_bytes()
    cache = EvalCache(path)
    cache.put("k", CachedText("x"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError) as caught:
            cache.flush()
    assert str(caught.value) == (
        f"cannot write the evaluation cache {path}: No space left on device; "
        "free space or mend permissions, then run the same command again"
    )
    cache.flush()
    assert path.read_bytes().startswith(whole)
    assert len(path.read_bytes().splitlines()) == 4
    assert EvalCache(path).get("k") == CachedText("x")


def test_an_unreadable_path_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read the evaluation cache"):
        EvalCache(tmp_path)


def test_bad_values_are_refused(tmp_path: Path) -> None:
    cache = EvalCache(tmp_path / "cache.jsonl")
    with pytest.raises(ValueError, match="a loss must be finite and have tokens"):
        cache.put("k", CachedLoss(float("inf"), 2))
    with pytest.raises(ValueError, match="token ids must not be negative"):
        text_key("a", [-1], {})
    with pytest.raises(ValueError, match="2 input ids but 1 labels"):
        loss_key("a", [1, 2], [1], {})


def test_forgetting_a_domain_keeps_what_is_surely_anothers(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    assert forget_domain(path, "sum") == (0, 0)
    owners = [("red", "red"), ("sum", "red"), ("base", "sum"), ("base", "red"), (None, "red")]
    with EvalCache(path) as cache:
        for number, (adapter, domain) in enumerate(owners):
            cache.put(str(number), CachedText("x"), adapter=adapter, domain=domain)
        cache.put("loss", CachedLoss(1.5, 2), adapter="red", domain="red")
    path.write_bytes(path.read_bytes() + b"\x00\xff\n" + b'{"key": "torn')
    assert forget_domain(path, "sum") == (5, 3)
    left = EvalCache(path)
    assert [key for key in ("0", "1", "2", "3", "4", "loss") if left.get(key)] == ["0", "3", "loss"]
    assert (left.skipped, left.torn) == (0, False)
    before = path.stat().st_mtime_ns
    assert forget_domain(path, "sum") == (0, 3)
    assert path.stat().st_mtime_ns == before
    assert forget_domain(path, "red") == (3, 0)
    assert not path.exists()
