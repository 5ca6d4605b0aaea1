"""Configs that are wrong in one place: keys, values, YAML, files, bases; and overrides."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.malformed.case import Case
from benchmarks.malformed.rows import lines, rows_of

GOOD = """\
base: BASE
device: cpu
dtype: float32
domains:
  one:
    train: one.jsonl
    test: test.jsonl
  two:
    train: two.jsonl
"""
"""A good config; BASE is put in by the benchmark."""

DATA: dict[str, bytes | None] = {
    "one.jsonl": lines(rows_of("prompt-completion", 8)),
    "two.jsonl": lines(rows_of("messages", 8)),
    "test.jsonl": lines(rows_of("trace", 3)),
}

# dotted key -> values that no config may have there, as YAML
WRONG_VALUES: dict[str, tuple[str, ...]] = {
    "base": ("null", "''", "5", "[a]", "nothing-like-that", "./no/such/folder", "one.jsonl"),
    "seed": ("-1", "4294967296", "1.5", "one", "null", "true"),
    "device": ("gpu", "'cuda:'", "cuda:x", "0", "null", "''"),
    "dtype": ("bf16", "int8", "16", "null"),
    "keep_eval": ("maybe", "1", "null", "'true'"),
    "adapter": ("deep", "[rank, 8]", "8", "null"),
    "adapter.placement": ("depp", "''", "3", "{modules: []}", "{modules: x}", "{modules: [a, a]}",
                          "{module: [a]}", "[deep]"),
    "adapter.rank": ("0", "-8", "1.5", "eight", "null", "true", "[8]"),
    "adapter.alpha": ("0", "-1", ".nan", ".inf", "big"),
    "adapter.dropout": ("1.0", "-0.1", ".nan", "10%"),
    "router": ("direct", "[]", "null"),
    "router.layer": ("0", "-1", "2.5", "first"),
    "router.solver": ("cholesky", "null", "1"),
    "router.ridge": ("0", "-0.1", ".inf", "small"),
    "router.expansion": ("-1", "0.5", "large", "null"),
    "router.abstain": ("1.0", "-0.01", "never", "null"),
    "router.views": ("[]", "bare", "[bear]", "[bare, bare]", "null"),
    "training": ("fast", "3", "null"),
    "training.epochs": ("0", "-1", "1.5", "two", "null", "true", "[1]"),
    "training.batch_size": ("0", "-4", "4.5", "auto"),
    "training.learning_rate": ("0", "-0.001", ".nan", ".inf", "1e-3x", "fast", "true"),
    "training.schedule": ("cosin", "null", "3"),
    "training.warmup": ("1.0", "-0.1", "3%"),
    "training.weight_decay": ("-0.1", ".nan", "no"),
    "training.max_length": ("0", "1", "-1", "10.5", "long", "null"),
    "training.max_grad_norm": ("0", "-1", ".inf"),
    "training.gradient_checkpointing": ("yes", "1", "null"),
    "training.max_steps": ("0", "-1", "0.5"),
    "eval": ("[]", "false", "null"),
    "eval.max_examples": ("0", "-1", "all"),
    "eval.max_new_tokens": ("0", "null", "1.5"),
    "eval.batch_size": ("0", "null", "many"),
    "domains": ("null", "{}", "[]", "one", "3"),
    "domains.one": ("null", "[]", "3", "one.jsonl"),
    "domains.one.train": ("null", "''", "3", "[one.jsonl]", "none.jsonl", "no/such/file.csv", "."),
    "domains.one.dev": ("''", "3", "none.jsonl", "."),
    "domains.one.test": ("3", "none.jsonl", "."),
    "domains.one.scorer": ("exakt", "3", "''", "[exact]"),
    "domains.one.format": ("message", "3", "''"),
    "domains.one.limit": ("0", "-1", "1.5", "all", "2"),
    "domains.one.max_new_tokens": ("0", "-1", "long"),
    "domains.one.adapter": ("deep", "null"),
    "domains.one.adapter.rank": ("0", "eight"),
    "domains.one.training.epochs": ("0", "two"),
}  # fmt: skip

UNKNOWN_KEYS = (
    *("bse", "model", "output_dir", "lr", "adapters", "domain", "Seed", "trust_remote_code"),
    *("adapter.r", "adapter.lora_alpha", "adapter.target_modules", "adapter.Rank"),
    *("router.layers", "router.lambda", "router.view", "training.epoch", "training.lr"),
    *("training.per_device_train_batch_size", "training.learning-rate", "eval.max_example"),
    *("domains.one.file", "domains.one.trian", "domains.one.name", "domains.one.training.rank"),
    *("domains.one.adapter.epochs", "domains.one.seed"),
)

BAD_NAMES = ("One", "base", "auto", "none", "default", "a b", "a/b", "../x", "-a", "_a", "é", "''",
             "x" * 65, "a.b")  # fmt: skip

BAD_YAML: dict[str, bytes] = {
    "nothing": b"",
    "a comment alone": b"# base: x\n",
    "plain words": b"train my model please\n",
    "a list": b"- base: x\n- domains: y\n",
    "a number": b"12\n",
    "two documents": b"base: x\n---\nbase: y\n",
    "a tab": b"base: x\ndomains:\n\tone: {train: one.jsonl}\n",
    "an open bracket": b"base: x\ndomains: {one: {train: one.jsonl}\n",
    "an open quote": b"base: 'x\ndomains: {one: {train: one.jsonl}}\n",
    "a crooked indentation": b"base: x\n domains:\n  one: {train: one.jsonl}\n",
    "a colon in a value": b"base: x: y\ndomains: {one: {train: one.jsonl}}\n",
    "a key twice": b"base: x\nbase: y\ndomains: {one: {train: one.jsonl}}\n",
    "a domain twice": b"base: x\ndomains:\n  a: {train: one.jsonl}\n  a: {train: one.jsonl}\n",
    "a setting twice": b"base: x\ntraining: {epochs: 1, epochs: 2}\ndomains: {}\n",
    "an unknown anchor": b"base: *x\ndomains: {one: {train: one.jsonl}}\n",
    "a Python object": b"base: !!python/object/apply:os.getcwd []\ndomains: {}\n",
    "an unknown tag": b"base: !thing x\ndomains: {one: {train: one.jsonl}}\n",
    "a list as a key": b"? [a, b]\n: x\n",
    "a number as a domain": b"base: x\ndomains: {[1]: {train: one.jsonl}}\n",
    "a lone byte 0xff": b"base: \xff\n",
    "a NUL byte": b"base: x\x00\n",
    "UTF-16 without a mark": "base: x\n".encode("utf-16-le"),
    "a merge conflict": b"<<<<<<< HEAD\nbase: x\n=======\nbase: y\n>>>>>>> b\n",
    "JSON that is cut": b'{"base": "x", "domains": {',
    "a million laughs": b"a: &a [x, x]\nb: &b [*a, *a]\nbase: *b\ndomains: {}\n",
    "no base": b"domains: {one: {train: one.jsonl}}\n",
    "no domains": b"base: x\n",
}

TOGETHER: dict[str, str] = {
    "two ridges": "router: {ridge: 0.1, absolute_ridge: 1.0}",
    "a relative ridge with rls": "router: {solver: rls, ridge: 0.1}",
    "three errors": "training: {epochs: 0, warmup: 2.0}\nadapter: {rank: 0}",
}

BAD_OVERRIDES: dict[str, tuple[str, ...]] = {
    "no value": ("training.epochs=",),
    "no key": ("=3",),
    "no equals sign": ("training.epochs",),
    "an unknown key": ("training.epoch=3",),
    "an unknown section": ("train.epochs=3",),
    "an unknown domain": ("domains.three.limit=3",),
    "a value out of range": ("training.epochs=0",),
    "a value of the wrong kind": ("training.epochs=two",),
    "below a value": ("seed.value=3",),
    "an empty part of a key": ("training..epochs=3",),
    "broken YAML": ("adapter.placement={modules: [",),
    "a missing file": ("domains.one.train=none.jsonl",),
}

TRAIN_ONLY: dict[str, tuple[str, ...]] = {
    "a router layer that the base does not have": ("router.layer=99",),
    "a module that the base does not have": (
        "adapter.placement={modules: [model.layers.3.x]}",
        "training.max_length=128",
    ),
    "longer than the base's context": ("training.max_length=100000",),
}


def _config(text: str | bytes, kind: str, name: str, blamed: str = "c.yaml", several: bool = False,
            more: dict[str, bytes | None] | None = None) -> Case:  # fmt: skip
    content = text if isinstance(text, bytes) else text.encode()
    files = {**DATA, **(more or {}), "c.yaml": content}
    return Case(kind, name, files, ("check", "c.yaml"), blamed, several)


def _with(dotted: str, value: str) -> str:
    """Return the good config with one key set: written into the document as YAML."""
    import yaml

    tree = yaml.safe_load(GOOD)
    here = tree
    *sections, last = dotted.split(".")
    for section in sections:
        here = here.setdefault(section, {})
    # The value stays the text that a user would write.
    here[last] = "VALUE"
    return yaml.safe_dump(tree, sort_keys=False).replace("VALUE", value)


def _blamed(dotted: str, value: str) -> str:
    """Return what the message has to name: the setting, or the file or base that it names."""
    key = dotted.split(".")[-1]
    if (key == "base" and "-like-" in value) or value.startswith("./") or value == "one.jsonl":
        return value.removeprefix("./")
    if value.startswith(("none.", "no/")):
        return value
    return f"limit {value}" if (key, value) == ("limit", "2") else key


def cases() -> Iterator[Case]:
    """Yield them all."""
    for dotted, values in WRONG_VALUES.items():
        for value in values:
            yield _config(
                _with(dotted, value),
                "a wrong setting",
                f"{dotted}: {value}",
                _blamed(dotted, value),
            )
    for dotted in UNKNOWN_KEYS:
        yield _config(_with(dotted, "1"), "an unknown key", dotted, dotted.split(".")[-1])
    for bad in BAD_NAMES:
        text = GOOD.replace("  two:", f"  {bad}:")
        yield _config(text, "a bad domain name", bad, bad.strip("'"))
    for what, content in BAD_YAML.items():
        several = what in ("a million laughs", "no domains", "a Python object")
        yield _config(content, "broken YAML", what, several=several)
    for what, extra in TOGETHER.items():
        yield _config(GOOD + extra + "\n", "settings that exclude each other", what,
                      several="three" in what)  # fmt: skip
    for what, overrides in BAD_OVERRIDES.items():
        files = {**DATA, "c.yaml": GOOD.encode()}
        yield Case("a bad override", what, files, ("check", "c.yaml", *overrides),
                   overrides[0].split("=")[0].split(".")[-1])  # fmt: skip
    for what, overrides in TRAIN_ONLY.items():
        files = {**DATA, "c.yaml": GOOD.encode()}
        blamed = {"router": "router.layer", "adapter": "model.layers.3.x"}
        yield Case(
            "what the base refuses",
            what,
            files,
            ("train", "c.yaml", *overrides, "--out", "model"),
            blamed.get(overrides[0].split(".")[0], "max_length"),
        )
    rows = rows_of("prompt-completion", 8)
    bad_rows = {
        "a broken row": lines(rows) + b"nope\n",
        "a row without an answer": lines([*rows, {"prompt": "x"}]),
        "three rows": lines(rows[:3]),
        "one prompt, many times": lines(rows[:1] * 9),
        "no rows": b"",
    }
    for what, content in bad_rows.items():
        more: dict[str, bytes | None] = {"one.jsonl": content}
        yield _config(GOOD, "bad data of a config", what, "one.jsonl", more=more)
        files = {**DATA, **more, "c.yaml": GOOD.encode()}
        yield Case("bad data of a config", f"{what}, trained", files,
                   ("train", "c.yaml", "--out", "model"), "one.jsonl")  # fmt: skip
    exact = GOOD.replace("    train: two.jsonl", "    train: two.jsonl\n    scorer: exact")
    texts = {"two.jsonl": lines(rows_of("text", 8))}
    yield _config(exact, "bad data of a config", "plain texts without answers to score", "two",
                  True, {**texts})  # fmt: skip
    yield _config(GOOD, "bad data of a config", "a bad test file", "test.jsonl",
                  more={"test.jsonl": b"nope\n"})  # fmt: skip
    yield _config(GOOD, "bad data of a config", "two bad files", "two.jsonl", True,
                  {"one.jsonl": b"nope\n", "two.jsonl": b""})  # fmt: skip
    yield Case("no such config", "missing", DATA, ("check", "d.yaml"), "d.yaml")
    yield Case("no such config", "a folder", {"d.yaml": None}, ("check", "d.yaml"), "d.yaml")
    yield Case("no such config", "missing, trained", DATA, ("train", "d.yaml", "--out", "m"),
               "d.yaml")  # fmt: skip
    files = {**DATA, "c.yaml": GOOD.encode()}
    yield Case("options that do not fit", "a format beside a config", files,
               ("check", "c.yaml", "--format", "messages"), "--format")  # fmt: skip
    yield Case("options that do not fit", "a test file beside a config", files,
               ("check", "c.yaml", "--test", "test.jsonl"), "--test")  # fmt: skip
    yield Case("options that do not fit", "a setting beside a file", files,
               ("check", "one.jsonl", "seed=1"), "seed=1")  # fmt: skip
    yield Case("options that do not fit", "data where a config is trained", files,
               ("train", "one.jsonl", "--out", "m"), "one.jsonl", several=True)  # fmt: skip
    yield Case("options that do not fit", "an unknown option", files,
               ("check", "one.jsonl", "--formt", "text"), "--formt")  # fmt: skip
