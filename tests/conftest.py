"""What holds for every test."""

from __future__ import annotations

import signal

# A test run that a shell started in the background inherits an ignored SIGINT, and so would every
# process that a test starts; the tests of Ctrl-C need Python's own handler.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
