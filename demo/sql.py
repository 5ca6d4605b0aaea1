"""``sql``: a question and a table's columns to one SQL query.

Every question can be read in one way only: it names the columns as the table does, says which of
two bounds is meant (above, at least), and asks for one thing. The query is written in one way, so
that it can be compared as text (scorer ``sql``): which columns, which order, which bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo.tables import NAMES, TABLES, Table
from demo.task import DemoDomain, Draw, Pool, Split

INSTRUCTION = "Write one SQL query that answers the question."


# {t} the table, {l} its label, {c} a text column, {v} its value, {q} words for both, {n} a number
# column, {w} words for a bound, {x} a number, {f} words for an aggregate.
COUNT_TEXT = Pool(
    train=(
        "How many {t} {q} are there?",
        "Count the {t} {q}.",
        "number of {t} with {c} {v}",
        "In how many {t} is the {c} {v}?",
    ),
    test=("What is the number of {t} {q}?", "Tell me how many {t} have {v} as {c}."),
)
COUNT_NUMBER = Pool(
    train=(
        "How many {t} have a {n} that is {w} {x}?",
        "Count the {t} with {n} {w} {x}.",
        "number of {t} whose {n} is {w} {x}",
    ),
    test=("How many of the {t} have their {n} {w} {x}?", "For how many {t} is the {n} {w} {x}?"),
)
LIST_TEXT = Pool(
    train=(
        "Show the {l} of all {t} {q}.",
        "Which {l} do the {t} {q} have?",
        "list the {l} of {t} with {c} {v}",
        "Give me the {l} of every one of the {t} whose {c} is {v}.",
    ),
    test=("I need the {l} of the {t} {q}.", "What is the {l} of {t} that have the {c} {v}?"),
)
LIST_NUMBER = Pool(
    train=(
        "Show the {l} of all {t} with {n} {w} {x}.",
        "Which {l} do {t} have whose {n} is {w} {x}?",
        "list the {l} of {t} where {n} is {w} {x}",
    ),
    test=("I need the {l} of the {t} whose {n} is {w} {x}.", "Find the {l} of {t}, {n} {w} {x}."),
)
LIST_BOTH = Pool(
    train=(
        "Show the {l} of all {t} {q} whose {n} is {w} {x}.",
        "list the {l} of {t} with {c} {v} and {n} {w} {x}",
    ),
    test=("I need the {l} of the {t} {q} where the {n} is {w} {x}.",),
)
AGGREGATE = Pool(
    train=(
        "What is the {f} {n} of all {t}?",
        "Give me the {f} {n} in {t}.",
        "{f} {n} over all {t}",
    ),
    test=("Tell me the {f} {n} among the {t}.", "How large is the {f} {n} of the {t}?"),
)
AGGREGATE_TEXT = Pool(
    train=(
        "What is the {f} {n} of {t} {q}?",
        "Give me the {f} {n} for {t} whose {c} is {v}.",
        "{f} {n} of {t} {q}",
    ),
    test=("Tell me the {f} {n} among {t} {q}.", "Of all {t} {q}, what is the {f} {n}?"),
)
TOP = Pool(
    train=(
        "Show the {l} of the {x} {t} with the {f} {n}.",
        "Which {x} {t} have the {f} {n}? Give the {l}.",
        "{l} of the {x} {t} with {f} {n}",
    ),
    test=("I need the {l} of the {x} {t} that have the {f} {n}.",),
)
GROUP = Pool(
    train=(
        "How many {t} are there for each {c}?",
        "Count the {t} per {c}.",
        "number of {t} by {c}",
    ),
    test=("For every {c}, how many {t} are there?", "Split the number of {t} by {c}."),
)
DISTINCT = Pool(
    train=(
        "Which different values of {c} do the {t} have?",
        "List every {c} in {t} once.",
        "all distinct {c} values of the {t}",
    ),
    test=("Which {c} values occur among the {t}, each once?",),
)

_BOUNDS = {
    "above": ">", "over": ">", "more than": ">", "below": "<", "under": "<", "less than": "<",
    "at least": ">=", "at most": "<=",
}  # fmt: skip
_FUNCTIONS = {
    "average": "AVG", "mean": "AVG", "highest": "MAX", "largest": "MAX", "lowest": "MIN",
    "smallest": "MIN", "total": "SUM",
}  # fmt: skip
_ORDERS = {"highest": "DESC", "largest": "DESC", "lowest": "ASC", "smallest": "ASC"}
_NO_SUM = ("total", "age", "rating")
"""Columns whose sum nobody asks for, or could not say."""


@dataclass(frozen=True)
class _Parts:
    """What one question is made of, drawn from a table."""

    table: Table
    column: str
    value: str
    number: str
    bound: str
    limit: int
    function: str
    order: str
    rows: int

    @property
    def text_condition(self) -> str:
        return f"{self.column} = '{self.value}'"

    @property
    def number_condition(self) -> str:
        return f"{self.number} {_BOUNDS[self.bound]} {self.limit}"


def _parts(rng: random.Random, table: Table) -> _Parts:
    column, number = rng.choice(list(table.texts)), rng.choice(list(table.numbers))
    low, high = table.numbers[number]
    limit = rng.randint(low, high)
    if limit > 100:  # as people ask
        limit -= limit % 10
    functions = [word for word in _FUNCTIONS if word != "total" or number not in _NO_SUM]
    return _Parts(
        table=table,
        column=column,
        value=rng.choice(table.texts[column].values),
        number=number,
        bound=rng.choice(list(_BOUNDS)),
        limit=limit,
        function=rng.choice(functions),
        order=rng.choice(list(_ORDERS)),
        rows=rng.randint(2, 9),
    )


_Query = Callable[[_Parts], str]

_RULES: dict[str, tuple[int, Pool, _Query]] = {
    "count, text": (
        3,
        COUNT_TEXT,
        lambda p: f"SELECT COUNT(*) FROM {p.table.name} WHERE {p.text_condition}",
    ),
    "count, number": (
        3,
        COUNT_NUMBER,
        lambda p: f"SELECT COUNT(*) FROM {p.table.name} WHERE {p.number_condition}",
    ),
    "list, text": (
        3,
        LIST_TEXT,
        lambda p: f"SELECT {p.table.label} FROM {p.table.name} WHERE {p.text_condition}",
    ),
    "list, number": (
        3,
        LIST_NUMBER,
        lambda p: f"SELECT {p.table.label} FROM {p.table.name} WHERE {p.number_condition}",
    ),
    "list, both": (
        2,
        LIST_BOTH,
        lambda p: (
            f"SELECT {p.table.label} FROM {p.table.name} "
            f"WHERE {p.text_condition} AND {p.number_condition}"
        ),
    ),
    "aggregate": (
        2,
        AGGREGATE,
        lambda p: f"SELECT {_FUNCTIONS[p.function]}({p.number}) FROM {p.table.name}",
    ),
    "aggregate, text": (
        2,
        AGGREGATE_TEXT,
        lambda p: (
            f"SELECT {_FUNCTIONS[p.function]}({p.number}) FROM {p.table.name} "
            f"WHERE {p.text_condition}"
        ),
    ),
    "top": (
        2,
        TOP,
        lambda p: (
            f"SELECT {p.table.label} FROM {p.table.name} "
            f"ORDER BY {p.number} {_ORDERS[p.order]} LIMIT {p.rows}"
        ),
    ),
    "group": (
        1,
        GROUP,
        lambda p: f"SELECT {p.column}, COUNT(*) FROM {p.table.name} GROUP BY {p.column}",
    ),
    "distinct": (1, DISTINCT, lambda p: f"SELECT DISTINCT {p.column} FROM {p.table.name}"),
}


def draw(rng: random.Random, split: Split) -> Draw:
    """Draw one question.

    Half of the test questions are about tables of train: with new wordings they are new prompts,
    and the other half asks for more than that.
    """
    known: Split = "train" if split == "train" or rng.random() < 0.5 else "test"
    table = TABLES[NAMES.pick(rng, known)]
    parts = _parts(rng, table)
    rule = rng.choices(list(_RULES), [weight for weight, _, _ in _RULES.values()])[0]
    _, wordings, query = _RULES[rule]
    question = wordings.pick(rng, split).format(
        t=table.name,
        l=table.label,
        c=parts.column,
        v=parts.value,
        q=table.texts[parts.column].phrase.format(v=parts.value),
        n=parts.number,
        w=parts.bound,
        x=parts.rows if rule == "top" else parts.limit,
        f=parts.order if rule == "top" else parts.function,
    )
    return Draw(f"{table}. {question}", query(parts), rule)


SQL = DemoDomain(name="sql", instruction=INSTRUCTION, scorer="sql", draw=draw, lead="Table: ")
