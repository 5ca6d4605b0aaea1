"""Domain names: what they may look like.

A domain's name is a folder name, a ``model`` field of an HTTP request, a config key and a metric
label, so it is kept to ``[a-z0-9][a-z0-9_-]{0,63}``. It is never given to PEFT as it is
(:mod:`asr.adapters.bank` prefixes it): an adapter called ``mlp`` makes PEFT drop the tensors of
other adapters on save, because it compares adapter names with the components of module paths.
"""

from __future__ import annotations

import re
import unicodedata

from asr.errors import ConfigError

MAX_LENGTH = 64
"""Longest domain name, in characters."""

RESERVED = frozenset({"auto", "base", "none", "default"})
"""Names with a meaning of their own: routing (auto), the base (base, none), PEFT's own default."""

_ALLOWED = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RULE = (
    "use lower-case letters, digits, '-' and '_', starting with a letter or a digit, "
    f"at most {MAX_LENGTH} characters"
)


def check_domain_name(name: object) -> str:
    """Return ``name`` if it is a valid domain name.

    Raises:
        ConfigError: not text, not of the allowed form, or reserved. Where a near valid name
            exists the message suggests it.
    """
    if not isinstance(name, str):
        raise ConfigError(f"domain name {name!r} is not text: {_RULE}")
    if name in RESERVED:
        listing = ", ".join(sorted(RESERVED))
        raise ConfigError(
            f"domain name '{name}' is reserved (reserved: {listing}){_hint(suggest_name(name))}"
        )
    if not _ALLOWED.fullmatch(name):
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        raise ConfigError(f"domain name {shown} is not allowed: {_RULE}{_hint(suggest_name(name))}")
    return name


def suggest_name(name: str) -> str | None:
    """Return the valid domain name nearest to ``name``, or None where nothing of it can be kept.

    Accents are dropped (``Médecine`` gives ``medecine``), every other run of characters outside
    the allowed ones becomes one ``-``, and a reserved word gets ``-domain`` appended.
    """
    plain = unicodedata.normalize("NFKD", name)
    ascii_only = plain.encode("ascii", "ignore").decode("ascii").lower()
    joined = re.sub(r"[^a-z0-9_]+", "-", ascii_only)
    suggestion = joined.lstrip("-_")[:MAX_LENGTH].rstrip("-_")
    if suggestion in RESERVED:
        suggestion += "-domain"
    return suggestion or None


def _hint(suggestion: str | None) -> str:
    return f" (try '{suggestion}')" if suggestion else ""
