"""The tables that the questions of ``sql`` are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from demo.task import Pool


@dataclass(frozen=True)
class Text:
    """A text column: how people speak of its value (``{v}``), and values."""

    phrase: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of one real-life kind.

    Attributes:
        name: of the table, plural, also the word for its rows.
        label: the column that says which row it is.
        texts: text columns.
        numbers: number columns with the smallest and largest value.
    """

    name: str
    label: str
    texts: Mapping[str, Text]
    numbers: Mapping[str, tuple[int, int]]

    @property
    def columns(self) -> list[str]:
        """All columns in the order in which the prompt lists them."""
        return [self.label, *self.texts, *self.numbers]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.columns)})"


_CITIES = ("Lyon", "Porto", "Graz", "Turin", "Ghent", "Malmo", "Leeds", "Izmir", "Tampa", "Kyoto")
_COLOURS = ("red", "blue", "green", "black", "white", "grey")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LANGUAGES = ("French", "Thai", "Greek", "Polish", "Danish")

NAMES = Pool(
    train=(
        "orders", "books", "employees", "flights", "patients", "cars", "courses", "recipes",
        "members", "houses", "songs", "parcels",
    ),
    test=("invoices", "films", "players", "hotels"),
)  # fmt: skip

_ALL_TABLES = (
    Table(
        "orders",
        "customer",
        {
            "city": Text("from {v}", _CITIES),
            "status": Text("that are {v}", ("open", "paid", "sent", "cancelled")),
        },
        {"total": (10, 900)},
    ),
    Table(
        "books",
        "title",
        {
            "author": Text("by {v}", ("Austen", "Borges", "Calvino", "Orwell", "Woolf")),
            "language": Text("in {v}", _LANGUAGES),
        },
        {"price": (4, 90), "weight": (90, 900)},
    ),
    Table(
        "employees",
        "name",
        {
            "department": Text("working in {v}", ("sales", "finance", "support", "design")),
            "city": Text("from {v}", _CITIES),
        },
        {"salary": (1800, 9000)},
    ),
    Table(
        "flights",
        "code",
        {"destination": Text("to {v}", _CITIES), "day": Text("on {v}", _DAYS)},
        {"price": (40, 900), "delay": (5, 180)},
    ),
    Table(
        "patients",
        "name",
        {
            "ward": Text("in the {v} ward", ("north", "south", "east", "west")),
            "doctor": Text("of doctor {v}", ("Weber", "Costa", "Singh", "Novak")),
        },
        {"age": (1, 95)},
    ),
    Table(
        "cars",
        "model",
        {
            "colour": Text("painted {v}", _COLOURS),
            "fuel": Text("that run on {v}", ("petrol", "diesel", "gas")),
        },
        {"price": (900, 60000), "mileage": (10, 300)},
    ),
    Table(
        "courses",
        "title",
        {
            "teacher": Text("taught by {v}", ("Baker", "Moreau", "Rossi", "Tanaka")),
            "room": Text("held in {v}", ("A1", "B2", "C3", "D4")),
        },
        {"fee": (20, 900)},
    ),
    Table(
        "recipes",
        "dish",
        {
            "cuisine": Text("from the {v} kitchen", ("Greek", "Thai", "Indian", "Mexican")),
            "course": Text("served as {v}", ("starter", "main", "dessert")),
        },
        {"time": (5, 180), "price": (2, 60)},
    ),
    Table(
        "members",
        "name",
        {
            "club": Text("of the {v} club", ("chess", "rowing", "tennis", "choir")),
            "country": Text("from {v}", ("Peru", "Spain", "Kenya", "Norway")),
        },
        {"score": (5, 500), "age": (16, 90)},
    ),
    Table(
        "houses",
        "address",
        {
            "city": Text("in {v}", _CITIES),
            "heating": Text("heated with {v}", ("gas", "oil", "wood")),
        },
        {"rent": (300, 4000), "size": (25, 240)},
    ),
    Table(
        "songs",
        "title",
        {
            "artist": Text("by {v}", ("Abba", "Queen", "Sade", "Toto")),
            "genre": Text("of the genre {v}", ("jazz", "rock", "soul", "folk")),
        },
        {"length": (90, 600)},
    ),
    Table(
        "parcels",
        "code",
        {
            "depot": Text("stored in {v}", _CITIES),
            "status": Text("that are {v}", ("lost", "waiting", "delivered")),
        },
        {"weight": (1, 40)},
    ),
    Table(
        "invoices",
        "client",
        {
            "status": Text("that are {v}", ("open", "paid", "overdue")),
            "currency": Text("in {v}", ("EUR", "USD", "GBP")),
        },
        {"amount": (20, 5000)},
    ),
    Table(
        "films",
        "title",
        {
            "director": Text("by {v}", ("Varda", "Kurosawa", "Hitchcock", "Lynch")),
            "language": Text("in {v}", _LANGUAGES),
        },
        {"length": (60, 240), "budget": (1, 90)},
    ),
    Table(
        "players",
        "name",
        {
            "team": Text("of the {v}", ("Lions", "Hawks", "Bears", "Wolves")),
            "position": Text("who play {v}", ("keeper", "wing", "defence")),
        },
        {"score": (1, 60), "age": (16, 40)},
    ),
    Table(
        "hotels",
        "name",
        {
            "city": Text("in {v}", _CITIES),
            "view": Text("with a view of the {v}", ("sea", "garden", "street")),
        },
        {"price": (40, 700), "rating": (1, 5)},
    ),
)
TABLES = {table.name: table for table in _ALL_TABLES}
"""All tables by name."""
