"""The report in a real browser: it loads nothing, its figures have size, its tables sort, and it can be read."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from distill.report import render
from distill.report.sections import available

from .conftest import write_run

#: What Debian calls it, and others.
NAMES = ("chromium", "chromium-browser", "google-chrome")
#: A telephone and a desk, in CSS pixels.
WIDTHS = (400, 1400)
pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "no Chromium to open the report in: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(write_run(tmp_path_factory.mktemp("runs") / "run"), available()) / "report.html"


@pytest.fixture
def open_at(browser: Browser, report: Path) -> Iterator[Callable[..., Page]]:
    """Opens the report from disk, and sees to it that nothing was wrong and nothing else was asked for."""
    wrong: list[str] = []
    asked: list[str] = []
    pages: list[Page] = []

    def opened(width: int = 1400, **options: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not wrong and set(asked) == {report.as_uri()}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_has_size_and_the_page_fits(open_at: Callable[..., Page], width: int):
    page = open_at(width)
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) > 20 and all(box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert all(box["right"] <= width for box in boxes)
    # What is wider, tables, scrolls in a box of its own.
    assert page.evaluate("document.documentElement.scrollWidth") <= width


#: Every text that is shown, with its size in pixels as drawn, its colour and what is behind it.
TEXTS = """() => {
  const solid = (each) => { for (; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor; if (!/, 0\\)$|transparent/.test(colour)) return colour; } };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), parent = walker.currentNode.parentElement;
    if (!text || parent.closest('script, svg')) continue;
    const style = getComputedStyle(parent);
    found.push([text, parseFloat(style.fontSize), style.color, solid(parent)]);
  }
  for (const each of document.querySelectorAll('svg text')) {
    const scale = each.ownerSVGElement.getBoundingClientRect().width / each.ownerSVGElement.viewBox.baseVal.width;
    const style = getComputedStyle(each);
    // Numbers inside the cells of a heat map stand on the cell.
    found.push([each.textContent, parseFloat(style.fontSize) * scale, null, null]);
  }
  return found;
}"""


def luminance(colour: str) -> float:
    """Of rgb(…), as WCAG 2 has it."""
    channels = [float(each) / 255 for each in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_at: Callable[..., Page], width: int, scheme: str):
    """No smaller than 11 pixels, 6.5 in a figure, and with a contrast of 4.5, as WCAG 2 asks for."""
    found = open_at(width, color_scheme=scheme).evaluate(TEXTS)
    assert len(found) > 500
    for text, size, ink, paper in found:
        assert size >= (6.5 if ink is None else 11), (text, size)
        if ink is not None:
            high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ink, paper)


def named(page: Page, table: str) -> Locator:
    return page.locator("table").filter(has=page.locator("caption", has_text=re.compile(f"^{table}$")))


def column(page: Page, table: str, place: int) -> list[str]:
    return [row.locator("th, td").nth(place).inner_text() for row in named(page, table).locator("tbody tr").all()]


def test_a_click_on_a_head_sorts(open_at: Callable[..., Page]):
    """Upwards, downwards and as it was; by what numbers are worth, whatever their unit."""
    page, table = open_at(), "By length of the text"
    head = named(page, table).locator("thead th").nth(0)
    as_it_was = ["128", "256", "512", "1,024"]
    assert column(page, table, 0) == as_it_was
    head.locator("button").click()
    assert column(page, table, 0) == as_it_was and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert column(page, table, 0) == as_it_was[::-1] and head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert column(page, table, 0) == as_it_was and head.get_attribute("aria-sort") is None
    matrix = "On held-out text of each domain: KL"
    named(page, matrix).locator("thead th").nth(2).locator("button").click()
    assert column(page, matrix, 0) == ["code", "code", "prose", "mixture", "prose", "mixture", "untrained"]


def test_units_dashes_and_words_are_told_apart(open_at: Callable[..., Page]):
    worth = """(texts) => texts.map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return worth(cell);
    })"""
    page = open_at()
    texts = [
        "–",
        "1.18×",
        "3 min 20 s",
        "2 h 05 min",
        "4.1 k",
        "3 MiB",
        "1,024",
        "0.55 ± 0.07",
        "-4.1e-05",
        "81.3 %",
        "code",
        "128-32",
    ]
    nbsp = [text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts]
    expected = [None, 1.18, 200, 7500, 4100, 3 * 2**20, 1024, 0.55, -4.1e-05, 81.3, "code", "128-32"]
    for given in (texts, nbsp):
        assert page.evaluate(worth, given) == pytest.approx(expected) or page.evaluate(worth, given) == expected


def test_a_claim_leads_to_its_definition(open_at: Callable[..., Page]):
    page = open_at(reduced_motion="reduce")
    page.locator(".verdict a.term").first.click()
    target = page.evaluate("document.querySelector(':target').getBoundingClientRect().toJSON()")
    assert page.url.endswith("#term-perplexity") and 0 <= target["top"] < 900


def test_the_page_refuses_to_load_anything(browser: Browser, report: Path):
    page = browser.new_page()
    page.goto(report.as_uri())
    refused = page.evaluate("""() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
        document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x.png"}));
    })""")
    assert refused.startswith("http://127.0.0.1:9")
    page.close()
