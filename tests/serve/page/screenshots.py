"""Take the pictures of the page in ``docs``: ``python -m tests.serve.page.screenshots``.

Answers and scores are scripted, so that the pictures show the page and not a model.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

from asr.serve.request import Event, Piece, Route, Routed
from tests.serve.api.fake_engine import FakeEngine, Row
from tests.serve.api.serving import listening
from tests.serve.page.browser import Page, chromium
from tests.serve.page.scripts import decision, serving

DOCS = Path(__file__).resolve().parents[3] / "docs"
DOMAINS = ("arithmetic", "dates", "forms", "sql", "story", "tables", "triage")

SQL = "How many orders did each customer place in March?"
QUERY = (
    "SELECT customer, COUNT(*) AS orders\nFROM orders\n"
    "WHERE placed >= '2026-03-01' AND placed < '2026-04-01'\nGROUP BY customer;"
)
DATE = "Which weekday is 14 March 2027?"


def script(row: Row) -> Iterator[Event]:
    """Answer what is asked here."""
    low = {name: 0.04 + 0.021 * place for place, name in enumerate(DOMAINS)}
    if DATE in row.text:
        found, answer = decision({**low, "dates": 0.943}, 0.42), "Sunday"
        if row.request.model == "base":
            answer = "The 14th of March 2027 is a Monday. It is the 73rd day of the year."
    elif SQL in row.text:
        found, answer = decision({**low, "sql": 0.871, "tables": 0.302}, 0.42), QUERY
    else:
        found = decision({**low, "story": 0.297}, 0.42)
        answer = "Lisbon is the capital of Portugal."
    named = Route(row.request.model, "named", None)
    kind = "abstained" if found.abstained else "auto"
    yield Routed(named if row.request.model != "auto" else Route(found.route, kind, found))
    yield Piece(answer, 1)
    yield row.finished(len(answer.split(" ")))


def main() -> None:
    """Take all pictures."""
    engine = FakeEngine(script)
    serving(engine, *DOMAINS)
    engine.resident = ["dates", "sql", "story"]
    with listening(engine) as url, chromium() as driver:
        page = Page(driver)
        for scheme, width, height in (
            ("light", 1280, 860),
            ("dark", 1280, 860),
            ("phone", 360, 740),
        ):
            page.open(url, width, height, "dark" if scheme == "dark" else "light")
            page.ready()
            count = 1
            if scheme == "dark":
                page.one("#compare").click()
                count = 2
                page.ask(DATE)
            else:
                page.ask("What is the capital of Portugal?" if scheme == "light" else SQL)
                if scheme == "light":
                    page.answered()
                    count = 2
                    page.ask(SQL)
            page.answered(count)
            if scheme == "phone":
                page.one(".scores summary").click()
                page.script("document.activeElement.blur(); scroller.scrollTop = 1e6")
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (DOCS / f"serve_page_{scheme}.png").write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
