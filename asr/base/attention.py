"""What attention kernels get wrong, kept away from where it matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def finite_gradients() -> Iterator[None]:
    """Within the block, attention whose gradients are asked for does not run in cuDNN.

    Its bfloat16 backward pass writes NaN into the gradient of queries that may see no key at all,
    which the padding of left-padded rows is: one batch in some dozens (those whose length cuDNN
    takes on) ruins every weight. Seen with PyTorch 2.11 on an H200, where the other kernels' are
    finite; forward passes are not affected.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
