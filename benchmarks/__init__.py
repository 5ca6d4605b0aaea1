"""Scripts that print ratios measured side by side in one run; each says how to run it."""

import asr  # noqa: F401  # before PEFT: quiets what importing that would print
