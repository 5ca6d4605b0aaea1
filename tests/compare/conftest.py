"""The tiny base and the workshop of the training tests."""

from __future__ import annotations

from tests.train.conftest import _little_garbage, _one_thread, shop, tiny_base

__all__ = ["_little_garbage", "_one_thread", "shop", "tiny_base"]
