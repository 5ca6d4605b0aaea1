from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, LlamaConfig

from asr.errors import BaseModelError, ConfigError
from asr.model.names import (
    RESERVED,
    check_base_modules,
    check_domain_name,
    domain_of,
    peft_name,
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


@given(names, names)
def test_peft_names_are_distinct_reversible_and_without_dots(one: str, other: str) -> None:
    assert domain_of(peft_name(one)) == one
    assert (peft_name(one) == peft_name(other)) == (one == other)
    assert "." not in peft_name(one)


def test_peft_names_of_bad_or_foreign_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        peft_name("a.b")
    with pytest.raises(ConfigError, match=r"adapter name 'mlp' is not a domain's: they start with"):
        domain_of("mlp")


def test_a_base_whose_modules_look_like_adapters_is_refused() -> None:
    check_base_modules(["model.layers.0.mlp", "domain", "model.my_domain__x"])
    with pytest.raises(BaseModelError) as caught:
        check_base_modules(["model", "model.domain__legal.proj"])
    assert str(caught.value) == (
        "module 'model.domain__legal.proj' of the base starts a path component with 'domain__', "
        "which is kept for adapters: rename the module, or use another base"
    )


def test_a_domain_named_like_a_module_does_not_cost_another_domain_its_tensors() -> None:
    """PEFT drops tensors of ``legal`` on save where another adapter is called ``mlp``."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
    )
    base = AutoModelForCausalLM.from_config(config)
    modules = [name for name, _ in base.named_modules()]
    check_base_modules(modules)
    components = sorted({part for name in modules for part in name.split(".") if part})
    assert {"mlp", "layers", "0"} <= set(components)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(base, lora, adapter_name=peft_name("legal"))
    # The last two: one name the start of another's, and PEFT's own words.
    for domain in [*components, "legal-docs", "lora_a"]:
        model.add_adapter(peft_name(domain), lora)
    for domain in ["legal", "legal-docs", "mlp"]:
        saved = get_peft_model_state_dict(model, adapter_name=peft_name(domain))
        assert len(saved) == 2 * 2 * 2  # layers x modules x (A, B)
        assert not any("domain__" in key for key in saved)
