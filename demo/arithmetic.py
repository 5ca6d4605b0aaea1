"""``arithmetic``: a small sum in words to a worked line and its number.

A question needs one or two operations on whole numbers; the answer works them out and ends with
``#### NUMBER``, as GSM8K's do (Cobbe et al., 2021, arXiv:2110.14168). All numbers that a question
holds are needed, none is negative, and divisions leave no rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from demo.dates import number_word
from demo.task import DemoDomain, Draw, Pool, Split

INSTRUCTION = "Work this out. End with #### and the number."

NAMES = Pool(
    train=(
        "Anna", "Luca", "Mira", "Tom", "Sofia", "Omar", "Lena", "Paul", "Nadia", "Jonas", "Ines",
        "Ravi", "Clara", "Hugo", "Yuki", "Marta", "Ben", "Aisha", "Felix", "Zoe",
    ),
    test=("Emil", "Priya", "Nora", "Diego", "Hana", "Oscar", "Leila", "Viktor"),
)  # fmt: skip

THINGS = Pool(
    train=(
        "apples", "stamps", "marbles", "postcards", "pencils", "tickets", "eggs", "books", "shells",
        "cookies", "candles", "tomatoes", "bottles", "stickers", "plums", "roses", "chairs",
        "photos", "batteries", "cups",
    ),
    test=("coins", "pears", "buttons", "magnets", "muffins", "tulips", "envelopes", "spoons"),
)  # fmt: skip

BOXES = Pool(
    train=("boxes", "bags", "trays", "packs", "baskets", "crates"), test=("jars", "cartons", "tins")
)

# {n} a name, {t} things, {b} boxes; {x} and {y} the numbers in the order of the worked line.
PLUS = Pool(
    train=(
        "{n} has {x} {t} and gets {y} more. How many {t} does {n} have now?",
        "There are {x} {t} on the table and {y} on the shelf. How many are there together?",
        "{n} found {x} {t} on Monday and {y} on Tuesday. How many is that in all?",
        "what do {x} {t} and {y} {t} make together",
        "{n} bought {x} {t}, then another {y}. What is the total?",
        "A shop sold {x} {t} in the morning and {y} in the afternoon. How many that day?",
    ),
    test=(
        "{n} owned {x} {t} and was given {y} as a present. How many are that now?",
        "We counted {x} {t} upstairs and {y} downstairs. How many altogether?",
        "add {y} {t} to {x} {t}, how many do I have",
    ),
)
MINUS = Pool(
    train=(
        "{n} had {x} {t} and gave away {y}. How many {t} are left?",
        "Of {x} {t}, {y} are broken. How many are still good?",
        "{n} baked {x} {t} and sold {y} of them. How many remain?",
        "i had {x} {t} and lost {y}, how many do i still have",
        "A box held {x} {t} before {n} took out {y}. How many are in it now?",
        "{n} wants {x} {t} and has {y}. How many are missing?",
    ),
    test=(
        "There were {x} {t} and {n} used {y} of them. What is left over?",
        "{y} out of {x} {t} went to {n}. How many stayed?",
        "{n} ordered {x} {t}, but {y} never came. How many did come?",
    ),
)
TIMES = Pool(
    train=(
        "{n} has {x} {b} with {y} {t} in each. How many {t} is that?",
        "One costs {y} euros. What do {x} of the {t} cost?",
        "{n} buys {y} {t} a day. How many are that in {x} days?",
        "how many {t} are in {x} {b} of {y}",
        "{x} friends bring {y} {t} each. How many {t} do they bring?",
        "There are {x} rows of {y} {t}. How many {t} are there?",
    ),
    test=(
        "Each of {x} {b} holds {y} {t}. How many {t} do they hold?",
        "{n} packs {x} {b}, every one with {y} {t}. How many {t} are packed?",
        "The {t} cost {y} euros apiece. How much are {x} of them?",
    ),
)
SHARE = Pool(
    train=(
        "{n} shares {x} {t} equally among {y} children. How many does each child get?",
        "{x} {t} fill {y} {b} evenly. How many {t} are in each?",
        "split {x} {t} between {y} people, how many each",
        "{y} of the {t} cost {x} euros in all. What does one cost?",
        "{n} puts {x} {t} into {y} equal rows. How long is a row?",
    ),
    test=(
        "{x} {t} are divided fairly by {y} friends. How many are one share?",
        "{n} packs {x} {t} into {y} {b}, the same number in each. How many go into one?",
    ),
)
TIMES_PLUS = Pool(
    train=(
        "{n} has {x} {b} of {y} {t} and {z} loose ones. How many {t} in all?",
        "{n} buys {x} {b} with {y} {t} each and finds {z} more. How many {t} is that?",
        "A cup costs {y} euros. {n} buys {x} and pays {z} euros for delivery. What is the total?",
    ),
    test=(
        "There are {x} {b} with {y} {t} each, and {z} {t} beside them. How many {t} altogether?",
        "{n} fills {x} {b} with {y} {t} each; {z} do not fit. How many {t} were there?",
    ),
)
PLUS_MINUS = Pool(
    train=(
        "{n} had {x} {t}, got {y} and gave away {z}. How many are there now?",
        "A bus starts with {x} people, {y} get on and {z} get off. How many are on it?",
        "{n} picks {x} {t}, then {y} more, and eats {z}. How many are left?",
    ),
    test=(
        "{n} saved {x} euros, earned {y} and spent {z}. How many euros remain?",
        "{x} {t} lie in a drawer. {n} adds {y} and takes {z} out. How many lie there now?",
    ),
)


def _plus(rng: random.Random) -> tuple[tuple[int, ...], str, int]:
    x, y = rng.randint(3, 60), rng.randint(2, 39)
    return (x, y), f"{x} + {y} = {x + y}", x + y


def _minus(rng: random.Random) -> tuple[tuple[int, ...], str, int]:
    x = rng.randint(8, 80)
    y = rng.randint(2, x - 2)
    return (x, y), f"{x} - {y} = {x - y}", x - y


def _times(rng: random.Random) -> tuple[tuple[int, ...], str, int]:
    x, y = rng.randint(2, 9), rng.randint(2, 12)
    return (x, y), f"{x} * {y} = {x * y}", x * y


def _share(rng: random.Random) -> tuple[tuple[int, ...], str, int]:
    y, each = rng.randint(2, 9), rng.randint(2, 12)
    return (y * each, y), f"{y * each} / {y} = {each}", each


def _times_plus(rng: random.Random) -> tuple[tuple[int, ...], str, int]:
    (x, y), first, product = _times(rng)
    z = rng.randint(2, 20)
    return (x, y, z), f"{first}, {product} + {z} = {product + z}", product + z


def _plus_minus(rng: random.Random) -> tuple[tuple[int, ...], str, int]:
    (x, y), first, total = _plus(rng)
    z = rng.randint(2, total - 2)
    return (x, y, z), f"{first}, {total} - {z} = {total - z}", total - z


_RULES: tuple[tuple[str, Pool, Callable[[random.Random], tuple[tuple[int, ...], str, int]]], ...]
_RULES = (
    ("plus", PLUS, _plus),
    ("minus", MINUS, _minus),
    ("times", TIMES, _times),
    ("share", SHARE, _share),
    ("times plus", TIMES_PLUS, _times_plus),
    ("plus minus", PLUS_MINUS, _plus_minus),
)
_WEIGHTS = (3, 3, 3, 2, 1, 1)
"""Mostly one operation: two are hard for a small model."""


def draw(rng: random.Random, split: Split) -> Draw:
    """Draw one question; a quarter of them spell their numbers below 60 as words."""
    rule, wordings, work = rng.choices(_RULES, _WEIGHTS)[0]
    numbers, line, result = work(rng)
    spelled = rng.random() < 0.25
    shown = [number_word(n) if spelled and n < 60 else str(n) for n in numbers]
    question = wordings.pick(rng, split).format(
        n=NAMES.pick(rng, split),
        t=THINGS.pick(rng, split),
        b=BOXES.pick(rng, split),
        **dict(zip("xyz", shown, strict=False)),
    )
    question = question[0].upper() + question[1:] if question.endswith((".", "?")) else question
    return Draw(question, f"{line}\n#### {result}", f"{rule}{', words' if spelled else ''}")


ARITHMETIC = DemoDomain(
    name="arithmetic", instruction=INSTRUCTION, scorer="number", draw=draw, lead="Question: "
)
