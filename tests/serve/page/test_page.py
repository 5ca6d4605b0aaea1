"""The page in a browser: what it shows, and what it sends."""

from __future__ import annotations

import math
import threading

import pytest

from asr.serve.request import Failed
from tests.serve.api.fake_engine import FakeEngine, says
from tests.serve.api.serving import client, listening
from tests.serve.page.browser import Keys, Page, needs_chromium
from tests.serve.page.scripts import decision, held, routed, serving

pytestmark = needs_chromium


def asked(engine: FakeEngine) -> list[str]:
    return [row.text for row in engine.rows]


def test_an_answer_and_its_route(page: Page, engine: FakeEngine) -> None:
    page.ask("tell me of red")
    page.answered()
    assert page.texts(".words") == ["Hello, world"]
    assert page.texts(".adapter strong") == ["red"] and page.texts(".kind") == ["auto"]
    assert page.text(".why") == "Chosen by the router, 0.800 ahead of the next domain."
    assert page.texts(".route dd") == ["0.900", "0.800", "0.500", "0.750"]
    assert page.texts(".scores li .name") == ["red", "sum"]
    assert page.texts(".scores li .value") == ["0.900", "0.100"]
    assert page.texts(".scores .chosen .mark") == ["chosen"] and len(page.all(".chosen")) == 1
    assert page.text(".scores .key") == "threshold 0.500"
    widths = page.script(
        "return [...document.querySelectorAll('.fill')].map(f => parseFloat(f.style.width))"
    )
    assert widths == pytest.approx([100, 100 / 9])
    assert page.script("return document.querySelector('.tick').style.left").startswith("55.5")
    assert "3 tokens" in page.text(".state") and "3 cached" in page.text(".state")


def test_html_in_an_answer_stays_text(page: Page, engine: FakeEngine) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    engine.script = says(attack)
    page.ask(attack)
    page.answered()
    assert page.texts(".words") == [attack]
    assert page.text(".asked") == f"You: {attack}"
    assert page.all("#conversation img, #conversation script") == []
    assert page.driver.title == "ASR playground"


def test_html_in_a_name_stays_text(page: Page, engine: FakeEngine) -> None:
    name = "<img src=x onerror=alert(1)>"
    engine.script = routed(decision({name: 0.9, "sum": 0.1}), "Hi")
    page.ask("x")
    page.answered()
    assert page.texts(".adapter strong") == [name]
    assert page.all("#conversation img") == []


def test_an_answer_is_shown_as_it_comes_and_stopped_by_escape(
    page: Page, engine: FakeEngine
) -> None:
    engine.script = held("so far", " never", threading.Event())
    page.ask("red")
    page.until(lambda: page.texts(".words") == ["so far"])
    assert page.texts(".adapter strong") == ["red"]
    assert page.one("#stop").is_displayed() and not page.one("#send").is_displayed()
    page.press(Keys.ESCAPE)
    page.answered()
    assert engine.left.wait(30)
    assert page.texts(".words") == ["so far"] and page.text(".state") == "Stopped."
    assert page.one("#send").is_displayed() and not page.one("#stop").is_displayed()


def test_the_stop_button_stops(page: Page, engine: FakeEngine) -> None:
    engine.script = held("so far", " never", threading.Event())
    page.ask("red")
    page.until(lambda: page.texts(".words") == ["so far"])
    page.one("#stop").click()
    page.answered()
    assert engine.left.wait(30)


def test_shift_enter_starts_a_line_and_enter_sends(page: Page, engine: FakeEngine) -> None:
    page.one("#text").send_keys("one", Keys.SHIFT + Keys.ENTER + Keys.NULL, "two", Keys.ENTER)
    page.answered()
    assert page.text(".asked") == "You: one\ntwo"
    assert "one\ntwo" in asked(engine)[0]


def test_nothing_is_sent_of_blanks_or_while_an_answer_comes(page: Page, engine: FakeEngine) -> None:
    page.ask("  ")
    go = threading.Event()
    engine.script = held("so far", ".", go)
    page.ask("red")
    page.until(lambda: page.texts(".words") == ["so far"])
    page.ask("next")
    assert page.one("#text").get_property("value").strip() == "next"
    go.set()
    page.answered()
    assert len(engine.rows) == 1


def test_a_conversation_goes_on_and_starts_anew(page: Page, engine: FakeEngine) -> None:
    engine.script = says("crimson")
    page.ask("first red")
    page.answered()
    page.ask("second")
    page.answered(2)
    assert all(words in asked(engine)[1] for words in ("first red", "crimson", "second"))
    page.one("#new").click()
    assert page.all(".turn") == [] and page.one("#empty").is_displayed()
    page.ask("third")
    page.answered()
    assert "first" not in asked(engine)[2]


def test_a_domain_or_the_base_can_be_named(page: Page, engine: FakeEngine) -> None:
    assert page.texts("#model option") == ["auto", "base", "red", "sum"]
    page.choose("#model", "sum")
    page.ask("tell me of red")
    page.answered()
    assert engine.requests[0].model == "sum"
    assert page.texts(".kind") == ["named"] and page.all(".scores") == []
    assert page.text(".why") == "Named in the request; the router was not asked."


def test_abstaining_is_explained(page: Page) -> None:
    page.ask("hello")
    page.answered()
    assert page.texts(".adapter strong") == ["base"] and page.texts(".kind") == ["abstained"]
    assert page.text(".why") == (
        "The router abstained: how well known it is, 0.100, is below the threshold of 0.500. "
        "red is nearest. The base answers."
    )
    assert page.all(".chosen") == []


def test_two_choices_are_compared_and_one_is_gone_on_from(page: Page, engine: FakeEngine) -> None:
    page.one("#compare").click()
    page.choose("#other", "sum")
    engine.script = lambda row: says(f"by {row.request.model}")(row)
    page.ask("tell me of red")
    page.answered(2)
    assert page.texts(".words") == ["by auto", "by sum"]
    assert page.texts(".adapter strong") == ["red", "sum"]
    left, right = (answer.rect for answer in page.all(".answer"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.all('input[type="radio"]')[1].click()
    page.one("#compare").click()
    page.ask("go on")
    page.answered(3)
    assert "by sum" in asked(engine)[2] and "by auto" not in asked(engine)[2]


def test_of_many_domains_the_bars_show_ten(page: Page, engine: FakeEngine) -> None:
    names = [f"domain-{number:03}" for number in range(100)]
    serving(engine, *names)
    engine.script = routed(decision({name: i / 100 for i, name in enumerate(names)}), "Hi")
    page.until(lambda: len(page.all("#model option")) == 102)
    page.ask("anything")
    page.answered()
    assert page.texts(".scores li .name") == names[:-11:-1]
    assert page.text(".scores > .note") == "and 90 more, none above 0.890"
    assert page.text(".scores summary") == "Scores of 100 domains"


def test_bars_of_negative_scores_start_at_zero(page: Page, engine: FakeEngine) -> None:
    engine.script = routed(decision({"red": 0.6, "sum": -0.2}, threshold=-math.inf), "Hi")
    page.ask("anything")
    page.answered()
    styles = page.script(
        "return [...document.querySelectorAll('.fill')]"
        ".map(f => [f.style.left, f.style.width].map(parseFloat))"
    )
    assert styles == [pytest.approx([25, 75]), pytest.approx([0, 25])]
    assert page.texts(".scores .value") == ["0.600", "−0.200"]
    assert page.all(".tick, .key") == [] and page.texts(".route dd")[2] == "none"


def test_a_threshold_on_another_scale_has_no_mark(page: Page, engine: FakeEngine) -> None:
    engine.script = routed(decision({"red": 0.6, "sum": 0.2}, 0.1, background=0.3), "Hi")
    page.ask("anything")
    page.answered()
    assert page.all(".tick, .key") == []
    assert page.text(".scores .note").startswith("The bars say which domain")


def test_an_error_is_one_line_with_a_retry(page: Page, engine: FakeEngine) -> None:
    engine.full = True
    page.ask("red")
    page.answered()
    assert page.text(".state") == "1000 requests are waiting already; try again in 7 s"
    engine.full = False
    page.one(".actions button").click()
    page.until(lambda: page.texts(".words") == ["Hello, world"])
    assert not page.all(".failed")


def test_an_answer_that_fails_midway_keeps_its_text_but_not_its_place(
    page: Page, engine: FakeEngine
) -> None:
    go = threading.Event()
    engine.script = held("half ", "", go, Failed("adapter", "adapter 'red' is damaged"))
    page.ask("red")
    page.until(lambda: page.texts(".words") == ["half "])
    go.set()
    page.answered()
    assert page.texts(".words") == ["half "]
    assert page.text(".state") == "adapter 'red' is damaged"
    engine.script = says("fine")
    page.ask("then sum")
    page.answered(2)
    assert "half" not in asked(engine)[1] and "then sum" in asked(engine)[1]


def test_sampling_settings_are_sent_and_checked(page: Page, engine: FakeEngine) -> None:
    page.one("#sampling summary").click()
    for name, value in (("temperature", "0.7"), ("max_tokens", "2"), ("seed", "11")):
        page.one(f"#{name}").send_keys(value)
    page.ask("red")
    page.answered()
    sent = engine.requests[0].sampling
    assert (sent.temperature, sent.max_tokens, sent.seed) == (0.7, 2, 11)
    assert page.text(".state").startswith("Cut off at its longest · 2 tokens")
    page.one("#temperature").clear()
    page.one("#temperature").send_keys("77")
    page.one("#sampling summary").click()
    page.ask("red")
    assert page.one("#sampling").get_property("open")
    assert len(engine.requests) == 1


def test_a_key_is_asked_for_kept_and_sent(driver: object, engine: FakeEngine) -> None:
    with listening(engine, api_key="schlüssel") as url:
        page = Page(driver)
        page.open(url)
        page.until(lambda: page.one("#lock").get_property("open"))
        page.press("wrong", Keys.ENTER)
        page.until(lambda: page.text("#lock-why") == "That key was not accepted.")
        page.press("schlüssel", Keys.ENTER)
        page.ready()
        page.ask("red")
        page.answered()
        assert page.texts(".words") == ["Hello, world"]
        assert page.script("return sessionStorage.length + localStorage.length") == 1
        page.driver.refresh()
        page.ready()
        assert not page.one("#lock").get_property("open")


def test_without_a_key_the_answer_is_an_error(driver: object, engine: FakeEngine) -> None:
    with listening(engine, api_key="secret") as url:
        page = Page(driver)
        page.open(url)
        page.until(lambda: page.one("#lock").get_property("open"))
        page.press(Keys.ESCAPE)
        page.until(lambda: "no valid API key" in page.text("#served"))
        page.ask("red")
        page.until(lambda: page.one("#lock").get_property("open"))
        page.one("#cancel").click()
        page.answered()
        assert page.text(".state").startswith("no valid API key")


def test_figures_are_live_and_pause_while_hidden(page: Page, engine: FakeEngine) -> None:
    assert page.text("#served") == "tiny-base with 2 domains"
    assert page.texts("#figures dd")[3:] == ["0 / 2", "4"]
    engine.resident = ["red"]
    page.until(lambda: page.text("#resident") == "1 / 2")
    page.ask("red")
    page.answered()
    page.until(lambda: page.text("#rate") not in ("–", "0.0"))
    page.script(
        "window.asked = 0; const real = fetch; window.fetch = (...a) => {window.asked++;"
        " return real(...a)};"
        "Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true});"
        "window.away = true; document.dispatchEvent(new Event('visibilitychange'))"
    )
    engine.resident = ["red", "sum"]
    page.driver.execute_async_script("setTimeout(arguments[0], 2600)")
    assert page.script("return window.asked") == 0 and page.text("#resident") == "1 / 2"
    page.script("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.until(lambda: page.text("#resident") == "2 / 2")


def test_the_end_stays_in_view_unless_one_scrolls_away(page: Page, engine: FakeEngine) -> None:
    def below() -> int:
        return int(page.script("return scroller.scrollHeight - scroller.scrollTop - innerHeight"))

    for count in (1, 2, 3):
        page.ask("red")
        page.answered(count)
    assert below() < 0  # the header and the form take the rest
    go = threading.Event()
    engine.script = held("so far", "\n" * 40, go)
    page.ask("red")
    page.until(lambda: page.texts(".words")[3] == "so far")
    page.driver.execute_async_script(
        "scroller.onscroll = () => arguments[0](); scroller.scrollTop = 0"
    )
    go.set()
    page.answered(4)
    assert page.script("return scroller.scrollTop") == 0


def test_answers_can_be_copied(page: Page) -> None:
    page.script("window.copied = null; navigator.clipboard.writeText = async t => {copied = t}")
    page.ask("red")
    page.answered()
    page.one(".actions button").click()
    page.until(lambda: page.text("#said") == "Copied")
    assert page.script("return window.copied") == "Hello, world"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, engine: FakeEngine, width: int) -> None:
    engine.script = routed(decision({"d" * 80: 0.9, "sum": 0.1}), "w" * 400)
    page.open(page.driver.current_url, width)
    page.ready()
    page.one("#compare").click()
    page.one("#sampling summary").click()
    page.ask("m" * 400)
    page.answered(2)
    for css in ("html", "body", "main", "header", "footer"):
        wide = page.script(
            "const e = document.querySelector(arguments[0]); return e.scrollWidth - e.clientWidth",
            css,
        )
        assert wide <= 0, css


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, engine: FakeEngine, scheme: str) -> None:
    page.open(page.driver.current_url, scheme=scheme)
    page.ready()
    for message in ("red", "hello"):
        page.ask(message)
        page.until(lambda: not page.all('[aria-busy="true"]') and page.one("#send").is_displayed())
    engine.full = True
    page.ask("red")
    page.answered(3)
    low = page.script(CONTRAST)
    assert low == []


def test_every_field_has_a_label_and_every_button_a_name(page: Page) -> None:
    page.ask("red")
    page.answered()
    unnamed = [
        element.get_attribute("outerHTML")
        for element in page.all("button, input, select, textarea, summary")
        if element.is_displayed() and not element.accessible_name
    ]
    assert unnamed == []


def test_the_files_are_served_open_and_load_nothing_from_outside(engine: FakeEngine) -> None:
    http = client(engine, api_key="secret")
    for path in ("/", "/style.css", "/app.js", "/route.js"):
        response = http.get(path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        assert "://" not in response.text
    assert http.get("/../api/page.py").status_code == 401


CONTRAST = """
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92
  : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = e => { for (; e; e = e.parentElement) {
  const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
const low = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !e.checkVisibility() || e.closest('.unseen')) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
}
return low;
"""
