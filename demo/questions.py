"""Free questions in a person's own words, two per domain and two outside all of them.

No generator wrote these, and none of their wordings stands in one. They show what routing does with
what people type: those of a domain should find it, the last two should go to the base. They were
not chosen by how they come out; of the larger set in ``free_questions_dev.jsonl`` four in five do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question, and the domain it belongs to (None: no domain, the base answers)."""

    text: str
    domain: str | None


QUESTIONS: tuple[Question, ...] = (
    Question("my flight lands on the 9th of june 2026, how do I put that in the ISO form", "dates"),
    Question("rent is due on the 3rd each month, so next one 3 august 2025. iso please", "dates"),
    Question(
        "hi, the blender you sent me gives off a burning smell, which team looks at this and "
        "should they hurry?",
        "triage",
    ),
    Question(
        "it says my parcel was delivered but there is nothing at the door, I need it by tomorrow!!",
        "triage",
    ),
    Question(
        "I keep my plants in a table called plants with name, room and height. how do I get the "
        "names of those in the kitchen out of it?",
        "sql",
    ),
    Question(
        "table books: title, author, year. which titles came out after 1990? give me the query",
        "sql",
    ),
    Question(
        "my sister brought 14 pancakes, we ate 9 of them at breakfast, what's still on the plate?",
        "arithmetic",
    ),
    Question(
        "there were 30 chairs, somebody took 12 to the other room, then 5 came back. how many now?",
        "arithmetic",
    ),
    Question("What could I cook tonight with lentils, carrots and half a cabbage?", None),
    Question("who wrote the novel Dracula", None),
)


def questions_for(domains: tuple[str, ...]) -> list[Question]:
    """Return the questions of these domains, and those outside all."""
    return [q for q in QUESTIONS if q.domain is None or q.domain in domains]
