"""What a user can do wrong: one small hierarchy, shown as one line each.

Every message says what was given, what exists, and what to type next. The command line prints the
message alone and exits with :attr:`AsrError.exit_code`; ``--debug`` adds the traceback. Errors of
the program itself are ordinary Python exceptions and are not caught here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AsrError(Exception):
    """Base of everything a user can mend. ``exit_code`` is the process's exit status."""

    exit_code: int = 2


class ConfigError(AsrError):
    """A training config or an override that cannot be accepted."""


class DataError(AsrError):
    """A data file, or rows of one, that cannot be used."""


class BaseModelError(AsrError):
    """A base model that cannot be found, read or used."""


class SplitUnsupportedError(BaseModelError):
    """An architecture whose forward pass cannot be split at the router layer."""


class AdapterError(AsrError):
    """An adapter or a placement that does not fit the base."""


class RouterError(AsrError):
    """Router statistics, ridge or solver that cannot be used."""


class ContractError(RouterError):
    """Features that were made under another feature contract; names the field."""


class DirectoryError(AsrError):
    """A routed model directory that is missing, foreign, newer or inconsistent."""


class LockedError(DirectoryError):
    """Another process is writing to the directory."""


class StorageError(AsrError):
    """The file system refused a write (disk full, read-only, no permission)."""


def first_line(error: BaseException) -> str:
    """Return what another library's error says, on one line; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(given, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def unknown(kind: str, given: str, choices: Iterable[str]) -> str:
    """Return the one-line message for a name that does not exist.

    Example: ``unknown scorer 'exakt' (did you mean 'exact'?); there are: exact, label, loss``.
    """
    known = sorted(choices)
    listing = ", ".join(known) if known else "none"
    return f"unknown {kind} '{given}'{did_you_mean(given, known)}; there are: {listing}"
