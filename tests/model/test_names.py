from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import ConfigError
from asr.model.names import (
    RESERVED,
    check_domain_name,
    suggest_name,
)

RULE = (
    "use lower-case letters, digits, '-' and '_', starting with a letter or a digit, "
    "at most 64 characters"
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789_-"
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True).filter(
    lambda name: name not in RESERVED
)


@pytest.mark.parametrize("name", ["a", "0", "legal", "legal-docs", "a_b", "no", "on", "x" * 64])
def test_valid_names_come_back(name: str) -> None:
    assert check_domain_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Legal Docs", f"domain name 'Legal Docs' is not allowed: {RULE} (try 'legal-docs')"),
        ("Médecine", f"domain name 'Médecine' is not allowed: {RULE} (try 'medecine')"),
        ("", f"domain name '' is not allowed: {RULE}"),
        ("法律", f"domain name '法律' is not allowed: {RULE}"),
        ("../etc", f"domain name '../etc' is not allowed: {RULE} (try 'etc')"),
        ("a/b", f"domain name 'a/b' is not allowed: {RULE} (try 'a-b')"),
        ("a.b", f"domain name 'a.b' is not allowed: {RULE} (try 'a-b')"),
        ("legal\n", f"domain name 'legal\\n' is not allowed: {RULE} (try 'legal')"),
        ("_x", f"domain name '_x' is not allowed: {RULE} (try 'x')"),
        ("Base", f"domain name 'Base' is not allowed: {RULE} (try 'base-domain')"),
        (7, f"domain name 7 is not text: {RULE}"),
        (
            "auto",
            "domain name 'auto' is reserved (reserved: auto, base, default, none) "
            "(try 'auto-domain')",
        ),
        (
            "x" * 100,
            f"domain name '{'x' * 77}...' is not allowed: {RULE} (try '{'x' * 64}')",
        ),
    ],
)
def test_invalid_names_say_what_to_type(name: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_domain_name(name)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is reserved"):
        check_domain_name(name)


@given(st.text(max_size=100))
def test_any_text_is_accepted_by_the_rule_or_refused_in_one_line(text: str) -> None:
    allowed = re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", text) and text not in RESERVED
    if allowed:
        assert check_domain_name(text) == text
    else:
        with pytest.raises(ConfigError) as caught:
            check_domain_name(text)
        assert len(str(caught.value).splitlines()) == 1


@given(st.text(max_size=200))
def test_suggestions_are_valid(text: str) -> None:
    suggestion = suggest_name(text)
    if suggestion is not None:
        assert check_domain_name(suggestion) == suggestion
