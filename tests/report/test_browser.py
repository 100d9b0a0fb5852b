"""The page in a real browser: that it works, by mouse and by keyboard, and can be read."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from polypath.report import Outcome, write_report
from polypath.report.wording import visible

from .conftest import make_outcome
from .test_page import HOSTILE, hostile

CONTRAST = """elements => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const light = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
        }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return elements.map((element) => {
        const behind = [];
        for (let at = element; at; at = at.parentElement) {
            behind.unshift(getComputedStyle(at).backgroundColor);
        }
        const ground = light(behind);
        const text = light([...behind, getComputedStyle(element).color]);
        return (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05);
    });
}"""
TEXT = "p, dt, dd, h1, h2, li, th, legend, label span, figcaption, output, .node, .tick, .layer"
TOKENS = ".passage-text:not([hidden]) [role=option]"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


class Opened:
    """A page that is open without a network, and everything that it complained about."""

    def __init__(self, browser: Browser, path: Path, **options) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *error) -> None:
        self.context.close()
        if error[0] is None:
            assert self.complaints == []
            assert len([url for url in self.requests if not url.startswith("data:")]) == 1


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, outcome: Outcome) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(outcome, path)
    return path


def colours(page: Page) -> list[str]:
    return page.eval_on_selector_all(
        TOKENS, "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    )


def chosen(page: Page) -> list[int]:
    """The places of the tokens that are said to be those of the picked expert."""
    return page.eval_on_selector_all(
        TOKENS,
        "spans => spans.flatMap((span, i) => span.ariaSelected === 'true' ? [i] : [])",
    )


def served(outcome: Outcome, layer: int, expert: int, passage: int = 0) -> list[int]:
    shown = list(outcome.figures[-1].passages[passage].layers.values())[layer]
    return [i for i, experts in enumerate(shown.experts) if expert in experts]


def radio(page: Page, group: str, value: int | str):
    return page.locator(f".explorer input[name$='-{group}'][value='{value}']")


def test_a_click_on_an_expert_leaves_its_tokens_in_colour(browser, report, outcome) -> None:
    with Opened(browser, report) as page:
        before = colours(page)
        assert chosen(page) == []
        for expert in (3, 5):
            radio(page, "expert", expert).check(force=True)
            own = served(outcome, 0, expert)
            assert chosen(page) == own
            after = colours(page)
            clear = "rgba(0, 0, 0, 0)"
            assert [i for i, colour in enumerate(after) if colour != clear] == own
            summary = page.locator(".summary").inner_text()
            assert summary.startswith(f"Expert {expert} serves {len(own)} of {len(before)} tokens")
        radio(page, "expert", "").check(force=True)
        assert colours(page) == before


def test_tokens_have_the_colour_of_their_first_expert(browser, report, outcome) -> None:
    with Opened(browser, report) as page:
        layers = list(outcome.figures[-1].passages[0].layers.values())
        for number, layer in enumerate(layers):
            radio(page, "layer", number).check(force=True)
            legend = page.eval_on_selector_all(
                ".explorer input[name$='-expert']:not([value='']) + span",
                "spans => spans.map(span => getComputedStyle(span).backgroundColor)",
            )
            assert len(set(legend)) == 8
            shown = page.eval_on_selector_all(
                TOKENS, "spans => spans.map(span => Number(span.className.match(/e(\\d+)/)[1]))"
            )
            assert shown == [experts[0] for experts in layer.experts]


def test_keys_choose_layer_expert_and_token(browser, report, outcome) -> None:
    with Opened(browser, report) as page:
        radio(page, "layer", 0).focus()
        first = colours(page)
        page.keyboard.press("ArrowRight")
        assert radio(page, "layer", 1).is_checked()
        assert colours(page) != first
        page.keyboard.press("Tab")
        assert radio(page, "expert", "").evaluate("e => e === document.activeElement")
        page.keyboard.press("ArrowRight")
        assert chosen(page) == served(outcome, 1, 0)
        page.keyboard.press("Tab")
        text = page.locator(".passage-text:not([hidden])")
        assert text.evaluate("e => e === document.activeElement")
        experts = list(outcome.figures[-1].passages[0].layers.values())[1].experts
        place = next(i for i, row in enumerate(experts) if i and row[0] != 0)
        for _ in range(place):
            page.keyboard.press("ArrowRight")
        active = text.get_attribute("aria-activedescendant")
        assert active is not None
        assert active.endswith(f"-0-{place}")
        page.keyboard.press("Enter")
        expert = experts[place][0]
        assert radio(page, "expert", expert).is_checked()
        assert chosen(page) == served(outcome, 1, expert)
        page.keyboard.press("Escape")
        assert chosen(page) == []


def test_keys_move_between_lines_of_the_text(browser, report) -> None:
    with Opened(browser, report) as page:
        page.locator(".passage-text:not([hidden])").focus()
        active = page.locator(f"{TOKENS}.active")
        tops = [active.evaluate("e => e.offsetTop")]
        for _ in range(3):
            page.keyboard.press("ArrowDown")
            tops.append(active.evaluate("e => e.offsetTop"))
        assert tops == sorted(set(tops))
        page.keyboard.press("ArrowUp")
        assert active.evaluate("e => e.offsetTop") == tops[-2]
        page.keyboard.press("End")
        assert active.evaluate("e => e.nextElementSibling") is None
        page.keyboard.press("Home")
        assert active.evaluate("e => e.previousElementSibling") is None


def test_pointing_at_a_token_tells_its_kind_experts_and_weights(browser, report, outcome) -> None:
    passage = outcome.figures[-1].passages[0]
    layer = next(iter(passage.layers.values()))
    with Opened(browser, report) as page:
        for i in (2, 7):
            page.locator(TOKENS).nth(i).hover()
            card = page.locator(".card")
            assert card.locator(".token").inner_text() == passage.tokens[i].replace(" ", "␣")
            assert card.locator(".kind").inner_text() == passage.kinds[i]
            rows = [row.split() for row in card.locator("li").all_inner_texts()]
            assert [int(expert) for expert, _ in rows] == layer.experts[i]
            assert [float(w) for _, w in rows] == pytest.approx(layer.weights[i], abs=6e-4)


def test_another_passage_keeps_its_white_space(browser, report, outcome) -> None:
    with Opened(browser, report) as page:
        radio(page, "passage", 1).check(force=True)
        text = page.locator(".passage-text:not([hidden])")
        passage = outcome.figures[-1].passages[1]
        assert text.text_content() == "".join(passage.tokens)
        assert text.evaluate("e => getComputedStyle(e).whiteSpace").startswith("pre-wrap")
        radio(page, "expert", 2).check(force=True)
        assert chosen(page) == served(outcome, 0, 2, passage=1)


def test_charts_are_read_by_slider_and_switched_by_view(browser, report, outcome) -> None:
    with Opened(browser, report) as page:
        chart = page.locator(".curves").first
        line = outcome.figures[0].series[0]

        def value() -> float:
            return float(chart.locator(".legend output").first.inner_text().split()[0])

        assert value() == pytest.approx(line.mean[-1], rel=1e-3)
        slider = chart.locator("input[type=range]")
        slider.focus()
        page.keyboard.press("Home")
        assert value() == pytest.approx(line.mean[0], rel=1e-3)
        page.keyboard.press("ArrowRight")
        assert value() == pytest.approx(line.mean[1], rel=1e-3)
        assert slider.get_attribute("aria-valuetext") == f"{line.x[1]}"
        chart.locator("input[type=radio]").nth(1).check(force=True)
        assert [view.is_visible() for view in chart.locator(".view").all()] == [False, True]


def test_flow_and_heat_maps_answer_to_keys(browser, report, outcome) -> None:
    with Opened(browser, report) as page:
        flow = page.locator(".flow")
        flow.locator("[tabindex='0']").focus()
        tip = page.locator("#tip")
        assert tip.is_visible()
        assert tip.inner_text().startswith("layer 0, expert 0: ")
        assert flow.locator("path.through").count() == sum(
            count > 0 for count in outcome.figures[2].transitions[0][0]
        )
        page.keyboard.press("ArrowRight")
        assert tip.inner_text().startswith("layer 1, expert ")
        page.locator(".heat [tabindex='0']").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert tip.is_visible()
        assert re.match(r"layer 1, expert 1: 0\.\d+", tip.inner_text())
        page.keyboard.press("Escape")
        assert not tip.is_visible()


def test_the_page_never_scrolls_sideways(browser, tmp_path) -> None:
    outcome = make_outcome(64, 8, 4, recipe="a-recipe-with-" + "a-very-long-name-" * 4)
    write_report(outcome, tmp_path / "report.html")
    with Opened(browser, tmp_path / "report.html") as page:
        for width in (320, 360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 780})
            for expert in ("", 63):
                radio(page, "expert", expert).check(force=True)
                assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_both_schemes_can_be_read(browser, report) -> None:
    papers = []
    for scheme in ("light", "dark"):
        with Opened(browser, report, color_scheme=scheme) as page:
            papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            for selector in (TEXT, TOKENS, ".heat td[data-tip]", ".summary, .note, .card *"):
                ratios = page.eval_on_selector_all(selector, CONTRAST)
                assert len(ratios) > 2
                assert min(ratios) >= 4.5, (scheme, selector)
            radio(page, "expert", 1).check(force=True)
            assert min(page.eval_on_selector_all(TOKENS, CONTRAST)) >= 4.5
    assert papers[0] != papers[1]


def test_a_change_of_scheme_needs_no_reload(browser, report) -> None:
    with Opened(browser, report, color_scheme="light") as page:
        stroke = "getComputedStyle(document.querySelector('.line')).stroke"
        before = colours(page), page.evaluate(stroke)
        page.emulate_media(color_scheme="dark")
        after = colours(page), page.evaluate(stroke)
        assert before[0] != after[0]
        assert before[1] != after[1]


def test_print_shows_whole_texts_on_white(browser, report) -> None:
    with Opened(browser, report, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        whole = "e => e.scrollHeight <= e.clientHeight + 1"
        assert page.locator(".passage-text:not([hidden])").evaluate(whole)
        assert min(page.eval_on_selector_all(TOKENS, CONTRAST)) >= 4.5


def test_without_scripts_the_findings_are_there(browser, report, outcome) -> None:
    with Opened(browser, report, java_script_enabled=False) as page:
        words = page.locator("main").inner_text()
        assert all(claim.claim in words for claim in outcome.claims)
        assert page.locator("path.line").first.is_visible()
        assert page.locator(".passage-text").first.is_visible()


def test_hostile_texts_break_nothing(browser, tmp_path) -> None:
    for word in HOSTILE[:2]:
        tokens = [word, *HOSTILE]
        write_report(hostile(tokens), tmp_path / "report.html")
        with Opened(browser, tmp_path / "report.html") as page:
            assert page.evaluate("window.broken") is None
            assert page.locator(TOKENS).all_text_contents() == [visible(token) for token in tokens]
            assert page.locator("main script:not([type])").count() == 0
            radio(page, "expert", 0).check(force=True)
            assert chosen(page) == list(range(len(tokens)))
