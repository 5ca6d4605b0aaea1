"""Silence notices of our libraries that a user can do nothing about.

Errors still come through; so does whatever this program says itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block, transformers logs errors only and library warnings are not shown."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
