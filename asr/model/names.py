"""Domain names: what they may look like, and the name PEFT sees.

A domain's name is a folder name, a ``model`` field of an HTTP request, a config key and a metric
label, so it is kept to ``[a-z0-9][a-z0-9_-]{0,63}``. It is never given to PEFT as it is: an
adapter called ``mlp`` makes PEFT drop the tensors of other adapters on save, because it compares
adapter names with the components of module paths.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from asr.errors import BaseModelError, ConfigError

MAX_LENGTH = 64
"""Longest domain name, in characters."""

RESERVED = frozenset({"auto", "base", "none", "default"})
"""Names with a meaning of their own: routing (auto), the base (base, none), PEFT's own default."""

PEFT_PREFIX = "domain__"
"""What every PEFT adapter name starts with, and no component of a module path may."""

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


def peft_name(domain: str) -> str:
    """Return the PEFT adapter name of ``domain``: ``domain__<name>``.

    It holds no ``.`` (PEFT refuses those: the name is a key of a ``ModuleDict``), differs between
    domains, and cannot equal a component of a module path of any base that passed
    :func:`check_base_modules`.

    Raises:
        ConfigError: ``domain`` is not a valid domain name.
    """
    return PEFT_PREFIX + check_domain_name(domain)


def domain_of(adapter_name: str) -> str:
    """Return the domain whose :func:`peft_name` is ``adapter_name``.

    Raises:
        ConfigError: the name does not come from :func:`peft_name`.
    """
    if not adapter_name.startswith(PEFT_PREFIX):
        raise ConfigError(
            f"adapter name {adapter_name!r} is not a domain's: they start with '{PEFT_PREFIX}'"
        )
    return check_domain_name(adapter_name.removeprefix(PEFT_PREFIX))


def check_base_modules(module_names: Iterable[str]) -> None:
    """Refuse a base in which a module path has a component that could be an adapter's name.

    ``module_names`` are dotted, as from ``model.named_modules()``.

    Raises:
        BaseModelError: a component starts with :data:`PEFT_PREFIX`; names the module.
    """
    for path in module_names:
        if any(part.startswith(PEFT_PREFIX) for part in path.split(".")):
            raise BaseModelError(
                f"module '{path}' of the base starts a path component with '{PEFT_PREFIX}', which "
                "is kept for adapters: rename the module, or use another base"
            )


def _hint(suggestion: str | None) -> str:
    return f" (try '{suggestion}')" if suggestion else ""
