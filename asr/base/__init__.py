"""The frozen base: resolve a name, load it, identify it, render for it, split its forward pass."""

from __future__ import annotations

import logging

# PEFT imports bitsandbytes wherever it is installed, and that logs at import which optional kernels
# it lacks: no user of a full-precision base can do anything about it. Errors still come through.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
