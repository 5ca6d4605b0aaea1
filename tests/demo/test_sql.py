"""``sql``: the queries run against the described table and find what the question asks for."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import pytest

from demo import sql
from demo.domains import make_domain
from demo.tables import NAMES, TABLES
from demo.task import Pool


def described(example: dict[str, Any]) -> tuple[str, list[str], str]:
    """Return table, columns and question as the prompt states them."""
    line = example["messages"][0]["content"].splitlines()[1]
    match = re.fullmatch(r"Table: (\w+) \(([^)]*)\)\. (.*)", line)
    assert match is not None, line
    return match[1], match[2].split(", "), match[3]


def database(table: str, columns: list[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
    return connection


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_query_runs_on_the_columns_that_its_prompt_describes(split: Any) -> None:
    rules = set()
    for example in make_domain("sql", split, 1000):
        table, columns, _ = described(example)
        query = example["messages"][1]["content"]
        # In double quotes sqlite would take an unknown column for a text; here none is quoted.
        assert '"' not in query
        database(table, columns).execute(query)
        rules.add(example["meta"]["rule"])
    assert rules == set(sql._RULES)


def test_a_query_on_another_column_would_be_noticed() -> None:
    example = make_domain("sql", "train", 1)[0]
    table, columns, _ = described(example)
    with pytest.raises(sqlite3.OperationalError, match="no such column: nonsense"):
        database(table, columns).execute(f"SELECT nonsense FROM {table}")


def test_what_the_query_compares_with_stands_in_the_question() -> None:
    bounds = {
        sign: [w for w, s in sql._BOUNDS.items() if s == sign] for sign in [">", "<", ">=", "<="]
    }
    for example in make_domain("sql", "train", 1000):
        _, _, question = described(example)
        query = example["messages"][1]["content"]
        for value in re.findall(r"'([^']*)'", query):
            assert value in question
        for sign, number in re.findall(r"([<>]=?) (\d+)", query):
            assert any(f"{word} {number}" in question for word in bounds[sign])
        for limit in re.findall(r"LIMIT (\d+)", query):
            assert limit in question.split()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("count, text", [(2,)]),
        ("count, number", [(1,)]),
        ("list, text", [("Ann",), ("Cem",)]),
        ("list, number", [("Cem",)]),
        ("list, both", [("Cem",)]),
        ("aggregate", [(20.0,)]),
        ("aggregate, text", [(25.0,)]),
        ("top", [("Cem",), ("Bo",)]),
        ("group", [("Graz", 1), ("Lyon", 2)]),
        ("distinct", [("Lyon",), ("Graz",)]),
    ],
)
def test_each_rule_asks_for_what_its_name_says(rule: str, expected: list[Any]) -> None:
    parts = sql._Parts(
        table=TABLES["orders"],
        column="city",
        value="Lyon",
        number="total",
        bound="above",
        limit=25,
        function="average",
        order="highest",
        rows=2,
    )
    orders = database("orders", TABLES["orders"].columns)
    orders.executemany(
        "INSERT INTO orders VALUES (?, ?, 'open', ?)",
        [("Ann", "Lyon", 10), ("Bo", "Graz", 10.5), ("Cem", "Lyon", 40)],
    )
    if rule == "aggregate":
        orders.execute("UPDATE orders SET total = 10 WHERE customer = 'Bo'")
    _, _, query = sql._RULES[rule]
    assert orders.execute(query(parts)).fetchall() == expected


def test_tables_and_wordings_of_the_splits_are_disjoint() -> None:
    assert not set(NAMES.train) & set(NAMES.test)
    assert set(NAMES.train) | set(NAMES.test) == set(TABLES)
    for _, wordings, _ in sql._RULES.values():
        assert not set(wordings.train) & set(wordings.test)
    words = [*vars(sql).values()]
    assert sum(isinstance(word, Pool) for word in words) >= len(sql._RULES)


def test_columns_of_a_table_are_distinct_and_no_phrase_lacks_its_value() -> None:
    for table in TABLES.values():
        assert len(set(table.columns)) == len(table.columns)
        assert all("{v}" in text.phrase for text in table.texts.values())
        assert all(low < high for low, high in table.numbers.values())
