"""Adapters on their way into memory, while the others go on.

Reading, hashing and checking an adapter takes tens of milliseconds to seconds; other threads do it,
and the worker takes the result over between two steps. Requests for an adapter that is being read
share the one reading.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from asr.adapters.bank import AdapterBank, ReadyAdapter
from asr.serve.served import Target


class Residency:
    """Makes adapters resident without blocking. One worker calls it.

    Args:
        bank: the bank that they go into.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self.bank = bank
        # Several: one file on a slow disk must not keep the others waiting.
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="asr-adapters")
        self._reading: dict[str, Future[ReadyAdapter]] = {}

    def acquire(self, target: Target) -> bool:
        """Pin a target's adapter if it is resident; else see to it that it becomes so.

        Returns:
            Whether it is resident and pinned now. The base always is. False also while all memory
            is pinned by other rows: ask again.

        Raises:
            AdapterError: it cannot be read, does not fit the base, or was changed on disk.
        """
        if target.folder is None:
            return True
        if target.key in self.bank.loaded:
            self.bank.pin(target.key)
            return True
        reading = self._reading.get(target.key)
        if reading is None:
            self._reading[target.key] = self._readers.submit(
                self.bank.prepare, target.folder, target.sha256
            )
            return False
        if not reading.done():
            return False
        if reading.exception() is None and not self.bank.has_room(reading.result().nbytes):
            return False
        del self._reading[target.key]
        self.bank.publish(target.key, reading.result())
        self.bank.pin(target.key)
        return True

    def release(self, target: Target) -> None:
        """Give the pin of :meth:`acquire` back."""
        if target.folder is not None:
            self.bank.unpin(target.key)

    def forget(self, keep: set[str]) -> None:
        """Drop what no row uses and nobody can ask for any more."""
        for key in self.bank.loaded:
            if key not in keep and not self.bank.is_pinned(key):
                self.bank.unload(key)
        for key in [key for key, future in self._reading.items() if key not in keep]:
            if self._reading[key].done():
                del self._reading[key]

    @property
    def is_reading(self) -> bool:
        """Whether an adapter is being read, so that it is worth asking again soon."""
        return bool(self._reading)

    def close(self) -> None:
        """End the reading thread."""
        self._readers.shutdown(wait=True, cancel_futures=True)
