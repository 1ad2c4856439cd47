"""The built site in a real browser: what a reader does, in both schemes, on a desk and on a phone."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.built_site import ROOT, built
from tools import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.browser

PATTERNS = catalogue.load(ROOT).patterns
QUERIES = [
    ("thundering herd", "cache/cache_aside"),
    ("two leaders", "container/leader_election"),
    ("cascading failure", "resiliency/circuit_breaker"),
]
WIDTHS = [(1440, 900), (390, 844)]
SCHEMES = {"light": "default", "dark": "slate"}


class _Published(http.server.SimpleHTTPRequestHandler):
    """Serves the site as if it were published at the address where it is asked for."""

    def do_GET(self) -> None:
        if self.path != "/sitemap.xml":
            super().do_GET()
            return
        # Instant navigation follows only what the sitemap names, with scheme, host and port.
        text = (built() / "sitemap.xml").read_text("utf-8")
        sitemap = text.replace("http://127.0.0.1:8000/", f"http://{self.headers['Host']}/").encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(sitemap)))
        self.end_headers()
        self.wfile.write(sitemap)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site, served from the loopback address, as any web server would."""
    handler = functools.partial(_Published, directory=str(built()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(needs: Callable[[str], str]) -> Iterator[Browser]:
    program = needs("chromium")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=root)
        yield browser
        browser.close()


# Material draws mermaid into a closed shadow tree, into which no test could look; and its search answers
# from a worker, one answer (type 3) for each query (type 2), so that it can be known which is the last.
WATCH = """
const attach = Element.prototype.attachShadow;
Element.prototype.attachShadow = function () { return attach.call(this, { mode: "open" }); };
const queries = [];
window.Worker = class extends window.Worker {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({ data }) => {
      if (data.type === 3) requestAnimationFrame(() => { window.answered = queries.shift(); });
    });
  }
  postMessage(message, ...rest) {
    if (message.type === 2) queries.push((window.asked = JSON.stringify(message.data).toLowerCase()));
    super.postMessage(message, ...rest);
  }
};
"""


# Each page reads the index of the whole site at once, which costs the worker longer than all the rest.
NOTHING_TO_FIND = {"config": {"lang": ["en"], "separator": " ", "pipeline": [], "fields": {}}, "docs": []}


@contextmanager
def opened(
    browser: Browser, address: str, *, searched: bool = False, **options: Any
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page in a fresh profile; with it comes the list of everything that went wrong.

    Unless it is to be `searched`, its search is given an index without entries.
    """
    wrong: list[str] = []
    context = browser.new_context(**options)
    context.add_init_script(WATCH)
    if not searched:
        context.route("**/search/search_index.json", lambda route: route.fulfill(json=NOTHING_TO_FIND))
    page = context.new_page()

    def requested(url: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            wrong.append(f"asked for {url}")

    page.on("request", lambda request: requested(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
    try:
        yield page, wrong
    finally:
        context.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page on a desk, light; the test fails on any error and on any request to another host."""
    with on_a_desk(browser, address) as page:
        yield page


@pytest.fixture
def searched(browser: Browser, address: str) -> Iterator[Page]:
    """The same, with everything to find."""
    with on_a_desk(browser, address, searched=True) as page:
        yield page


@contextmanager
def on_a_desk(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    size = {"width": 1440, "height": 900}
    with opened(browser, address, viewport=size, color_scheme="light", **options) as (page, wrong):
        yield page
        page.wait_for_load_state("networkidle")
        assert wrong == []


def search(page: Page, query: str) -> list[str]:
    """Type a query into the search box and return the paths of the results, best first."""
    page.wait_for_load_state("networkidle")  # by then the index is there
    box = page.locator(".md-search__input")
    if not box.evaluate("box => box === document.activeElement"):
        page.keyboard.press("/")
        expect(box).to_be_focused()
    box.fill(query[:-1])
    box.press_sequentially(query[-1])  # it is the key that is listened to
    page.wait_for_function(
        "last => window.asked?.includes(last) && window.asked === window.answered",
        arg=query.rsplit(maxsplit=1)[-1].lower(),
    )
    hrefs: list[str] = page.locator(".md-search-result__list > li > a").evaluate_all(
        "links => links.map(link => link.getAttribute('href'))"
    )
    return list(dict.fromkeys(re.sub(r"^https?://[^/]+/|[?#].*$", "", href) for href in hrefs))


# What a reader does


@pytest.mark.parametrize(("query", "key"), QUERIES)
def test_searching_for_what_one_sees_finds_the_pattern(
    searched: Page, address: str, query: str, key: str
) -> None:
    """A symptom, typed into the search, has the right page among the first three results."""
    searched.goto(address)
    assert f"{key}/" in search(searched, query)[:3]


@pytest.mark.parametrize("key", PATTERNS)
def test_every_symptom_and_name_of_a_page_finds_it(searched: Page, address: str, key: str) -> None:
    """Whatever the front matter promises is found among the first three."""
    pattern = PATTERNS[key]
    lost = {}
    searched.goto(address + "glossary/")
    for query in (pattern.title, *pattern.aka, *pattern.symptoms):
        found = search(searched, query)[:3]
        if f"{key}/" not in found:
            lost[query] = found
    assert lost == {}


def test_the_scheme_is_switched_and_kept(page: Page, address: str) -> None:
    """Two clicks lead from the system's scheme over light to dark, and the next page is dark too."""
    page.goto(address)
    body = page.locator("body")
    expect(body).to_have_attribute("data-md-color-scheme", "default")
    for _ in range(2):
        page.locator("form[data-md-component=palette] label:visible").click()
    expect(body).to_have_attribute("data-md-color-scheme", "slate")
    page.goto(address + "choose/")
    expect(body).to_have_attribute("data-md-color-scheme", "slate")


def test_the_home_page_filters_symptoms_as_one_types(page: Page, address: str) -> None:
    """Only the lines with all the words stay, and a word that is nowhere says so."""
    page.goto(address)
    rows = page.locator(".symptom-index li:visible")
    before = rows.count()
    symptom, pattern = catalogue.load(ROOT).symptoms()[0]
    page.locator(".symptom-index input").fill(symptom.upper())
    expect(rows.first).to_contain_text(pattern.title)
    assert 0 < rows.count() < before
    page.locator(".symptom-index input").fill("zebrafish")
    expect(rows).to_have_count(0)
    expect(page.locator(".symptom-index .none")).to_be_visible()


@pytest.mark.parametrize("key", PATTERNS)
def test_a_notebook_opens_from_its_page_and_can_be_saved(page: Page, address: str, key: str) -> None:
    """The link under the title leads to the executed notebook, whose download is a notebook."""
    page.goto(f"{address}{key}/")
    page.locator("p.faces a", has_text="Notebook").click()
    page.wait_for_url(f"{address}notebooks/{key}/")
    expect(page.locator(".highlight.cell").first).to_be_visible()
    assert page.locator(".output, figure.plot").count() > 0
    with page.expect_download() as download:
        page.locator("a.download").click()
    cells = json.loads(download.value.path().read_text("utf-8"))["cells"]
    assert page.locator(".highlight.cell").count() == sum(
        cell["cell_type"] == "code" and bool("".join(cell["source"]).strip()) for cell in cells
    )


def test_an_edge_leads_to_the_related_pattern_and_back(page: Page, address: str) -> None:
    """A relation is followed without a reload, and the other page shows it from its side."""
    start = next(key for key in PATTERNS if any(edge.target for edge in catalogue.load(ROOT).edges(key)))
    page.goto(f"{address}{start}/")
    page.wait_for_load_state("networkidle")  # by then the sitemap is there, which instant navigation needs
    page.evaluate("window.same = true")
    link = page.locator(".related li a").first
    title = link.inner_text()
    link.click()
    expect(page.locator("h1")).to_contain_text(title)
    assert page.evaluate("window.same") is True, "the page was loaded anew"
    back = page.locator(".related li a", has_text=PATTERNS[start].title).first
    back.click()
    page.wait_for_url(f"{address}{start}/")


def test_a_link_to_a_pattern_shows_it_before_it_is_followed(page: Page, address: str) -> None:
    """Resting on the link opens a preview of the page it leads to."""
    start = next(key for key in PATTERNS if any(edge.target for edge in catalogue.load(ROOT).edges(key)))
    page.goto(f"{address}{start}/")
    page.wait_for_load_state("networkidle")
    link = page.locator(".related li a").first
    link.hover()
    expect(page.locator(".md-tooltip2--active")).to_contain_text(link.inner_text())


@pytest.mark.parametrize("key", PATTERNS)
def test_mermaid_is_drawn_from_the_vendored_script(page: Page, address: str, key: str) -> None:
    """Each mermaid block becomes an SVG with text in it."""
    source = (ROOT / f"docs/{key}.md").read_text("utf-8")
    blocks = source.count("```mermaid")
    assert blocks > 0
    with page.expect_response(re.compile(r"/assets/vendor/mermaid/mermaid\.min\.js$")):
        page.goto(f"{address}{key}/")
    drawn = page.locator("div.mermaid")
    expect(drawn).to_have_count(blocks, timeout=20_000)
    for at in range(blocks):
        found = drawn.nth(at).evaluate(
            "e => { const svg = e.shadowRoot.querySelector('svg');"
            " return [svg.getBoundingClientRect().height, svg.textContent.length, svg.outerHTML] }"
        )
        assert found[0] > 50
        assert found[1] > 20
        assert "Syntax error" not in found[2]


def test_a_page_without_a_diagram_does_not_load_mermaid(page: Page, address: str) -> None:
    """Three and a half megabytes are fetched only where they draw something."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert asked
    assert not any("mermaid" in url for url in asked)


def test_a_drawing_is_enlarged_and_put_away(page: Page, address: str) -> None:
    """A click shows it as wide as the window allows; Escape brings the page back."""
    page.goto(f"{address}{next(iter(PATTERNS))}/")
    small = page.locator("figure.diagram img").first
    before = small.bounding_box()
    small.click()
    large = page.locator("dialog.enlarged img")
    expect(large).to_be_visible()
    after = large.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] >= before["width"]
    page.keyboard.press("Escape")
    expect(page.locator("dialog.enlarged")).to_have_count(0)


def test_code_can_be_copied(page: Page, address: str) -> None:
    """Every highlighted block has a copy button."""
    page.goto(f"{address}{next(iter(PATTERNS))}/")
    blocks = page.locator("article .highlight").count()
    assert blocks > 0
    expect(page.locator("article .highlight [data-md-type=copy]")).to_have_count(blocks)


def test_a_link_to_a_line_shows_that_line(page: Page, address: str) -> None:
    """From an included region the reader arrives at its first line in the source."""
    page.goto(f"{address}{next(iter(PATTERNS))}/")
    link = page.locator("p.source a").first
    line = link.inner_text().rpartition("line ")[2]
    link.click()
    page.wait_for_url(re.compile(rf"/api/.*#L{line}$"))
    expect(page.locator(f"#L{line}")).to_be_in_viewport()


# What a reader sees


CONTRAST = r"""
() => {
  const parse = (text) => {
    const match = text.match(/rgba?\(([^)]+)\)/);
    if (!match) return null;
    const [r, g, b, a = 1] = match[1].split(/[\s,\/]+/).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) => {
    const a = top[3];
    return [0, 1, 2].map((i) => top[i] * a + under[i] * (1 - a)).concat(1);
  };
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => {
      const c = value / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color && color[3] > 0) layers.push(color);
      if (color && color[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const poor = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    const seen_at_all = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!node.data.trim() || !seen_at_all) continue;
    if (element.closest("script, style, .md-search, .headerlink")) continue;
    const style = getComputedStyle(element);
    const inSvg = element.closest("svg");
    const color = parse(inSvg ? style.fill : style.color);
    if (!color) continue;
    seen += 1;
    const under = behind(inSvg ? inSvg.parentElement : element);
    const [a, b] = [luminance(over(color, under)), luminance(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      const what = `${element.tagName}.${element.className}: ${node.data.trim().slice(0, 40)}`;
      poor.push(`${ratio.toFixed(2)} ${what}`);
    }
  }
  return [seen, [...new Set(poor)]];
}
"""


def _shown() -> list[str]:
    first = next(iter(PATTERNS))
    category = first.partition("/")[0]
    pages = [f"{key}/" for key in PATTERNS] + [f"notebooks/{key}/" for key in PATTERNS]
    return ["", "choose/", "glossary/", "tags/", "404.html", f"{category}/", "api/", f"api/{first}/", *pages]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_is_legible_and_fits(browser: Browser, address: str, scheme: str) -> None:
    """In both schemes, wide and narrow, text has the contrast of WCAG AA and nothing sticks out sideways."""
    with opened(browser, address, color_scheme=scheme) as (page, wrong):
        for path in _shown():
            page.goto(address + path)
            expect(page.locator("body")).to_have_attribute("data-md-color-scheme", SCHEMES[scheme])
            for width, height in WIDTHS:
                page.set_viewport_size({"width": width, "height": height})
                seen, poor = page.evaluate(CONTRAST)
                assert seen > 10
                assert poor == [], (path, width)
                spare = page.evaluate(
                    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                assert spare <= 0, (path, width)
        page.wait_for_load_state("networkidle")
        assert wrong == []


def test_poor_contrast_would_be_seen(page: Page, address: str) -> None:
    """The check of contrast finds one grey word on white."""
    page.goto(address)
    page.evaluate("document.querySelector('h1').style.color = '#bbb'")
    _, poor = page.evaluate(CONTRAST)
    assert len(poor) == 1
    assert " H1." in poor[0]


def test_a_request_to_another_host_would_be_seen(browser: Browser, address: str) -> None:
    """The guard that every test here stands under notes a picture from elsewhere, and a script's error."""
    with opened(browser, address) as (page, wrong):
        page.goto(address)
        page.evaluate(
            "new Promise(done => {"
            " const i = new Image(); i.onerror = done; i.src = 'http://a.invalid/x.png' })"
        )
        assert "asked for http://a.invalid/x.png" in wrong
        with page.expect_console_message():
            page.evaluate("console.error('out of order')")
        assert "out of order" in wrong
