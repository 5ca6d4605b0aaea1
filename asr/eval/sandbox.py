"""Runs Python that nobody has read against asserts, in a process of its own with limits.

What holds, each independent of the others:

- a fresh interpreter (``-I -S -B``: no site packages, no user settings) in a session of its own, an
  empty environment, an empty temporary folder as its working directory, no standard input, output
  thrown away;
- limits on processor time, memory, file size (0), core files and processes (0), and on wall time,
  after which the whole process group is killed;
- an audit hook (PEP 578) that refuses sockets, processes, signals, ctypes, and changing files;
- on Linux x86-64, a seccomp filter: the kernel itself refuses sockets, new processes and threads,
  exec, signals to others, tracing, and every call that writes, makes, renames or deletes a file.

What this is not: a virtual machine. The code can read what this user may read (it has nowhere to
send it). Without the seccomp filter (other systems, or a container that refuses it: a warning says
so) the audit hook stands alone, which determined code gets around. Nothing of it guards against
flaws of the kernel or of Python. Code from a source that means harm belongs into a container or a
machine made for it.

The verdict: a random token lies in a pipe until the asserts have run; then it is sent back. Exiting
early, printing, or replacing builtins therefore does not pass. What remains: code written against
this very file could fetch the token itself, and objects that claim to equal everything pass asserts
that only compare.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from asr.errors import ConfigError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_READY = b"ready"
_LONGEST = 4096
"""Bytes read from a child: its first line and the token are far shorter."""


@dataclass(frozen=True)
class Program:
    """What to run, in this order.

    Attributes:
        code: the solution.
        setup: runs after it, before the tests.
        tests: each runs in the same namespace; none may raise.
        redefined: builtin names that the solution is meant to define. Any other builtin that it
            shadows or replaces is put back before ``setup`` runs.
    """

    code: str
    setup: str = ""
    tests: tuple[str, ...] = ()
    redefined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_seconds: processor time, whole seconds.
        wall_seconds: time from start to verdict.
        memory: bytes of address space.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    memory: int = 1 << 30


def passes(program: Program, limits: Limits | None = None) -> bool:
    """Run ``program`` and return whether its tests passed within ``limits``.

    Raises:
        ConfigError: the system is not POSIX, or the sandbox does not start on it.
    """
    if os.name != "posix":
        raise ConfigError(
            "scorer 'python' runs code under POSIX limits, which this system does not have; use "
            "Linux, macOS or WSL, or score the domain with 'exact' or 'loss'"
        )
    limits = limits or Limits()
    token = secrets.token_bytes(32)
    with (
        tempfile.TemporaryDirectory(prefix="asr-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as payload,
    ):
        payload.write(json.dumps({**asdict(program), **asdict(limits)}).encode())
        payload.seek(0)
        answer, status = _run(payload.fileno(), folder, token, limits)
    opening, newline, verdict = answer.partition(b"\n")
    started, _, rest = opening.decode("utf-8", "replace").partition(" ")
    if not newline or started.encode() != _READY:
        if status == "late":  # a machine too busy to start an interpreter: nothing is known
            raise ConfigError(
                f"the sandbox of scorer 'python' did not start within {limits.wall_seconds:g} "
                "seconds; run again when the machine has less to do"
            )
        told = opening.decode("utf-8", "replace") or f"the interpreter ended with {status}"
        raise ConfigError(
            f"the sandbox of scorer 'python' does not start: {told}; score the domain with 'exact' "
            "or 'loss' instead"
        )
    if rest:
        warnings.warn(
            f"scorer 'python': this system refuses a part of the sandbox ({rest}); the rest holds",
            stacklevel=2,
        )
    return hmac.compare_digest(verdict, token)


def _run(payload: int, folder: str, token: bytes, limits: Limits) -> tuple[bytes, str]:
    """Return what the child wrote until it closed its pipe, ended or was late; and how it ended."""
    token_read, token_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    try:
        os.write(token_write, token)
        os.close(token_write)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD)]
            + [str(number) for number in (payload, token_read, verdict_write)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            pass_fds=(payload, token_read, verdict_write),
            start_new_session=True,
        )
        os.close(verdict_write)
        verdict_write = -1
        try:
            answer, late = _read(verdict_read, time.monotonic() + limits.wall_seconds)
        finally:
            # The leader is not reaped yet, so its group cannot be another's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    finally:
        for descriptor in (token_read, verdict_read, verdict_write):
            if descriptor >= 0:
                os.close(descriptor)
    return answer, "late" if late else f"status {code}"


def _read(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """Read to the end, ``_LONGEST`` bytes or the deadline; the second tells the last."""
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(data) < _LONGEST:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return data, True
            chunk = os.read(descriptor, _LONGEST)
            if not chunk:
                break
            data += chunk
    return data, False
