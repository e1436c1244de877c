"""The page in a real browser: clicks, folding, search, keys, print, dark, and no message on the console."""

import base64
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_plan import made_plan
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from dni_fx.page import Chart, Page, Series, write_page

pytestmark = pytest.mark.slow

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("the page is tested in a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))  # a path: selenium downloads no driver
    opened.set_script_timeout(30)
    yield opened
    opened.quit()


class Shown:
    """A page in the browser."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self.browser = browser
        browser.get(path.as_uri())
        self.settled()
        self.js("document.getElementById('graph').scrollIntoView()")
        time.sleep(0.1)  # cytoscape reads its place again when the page has scrolled

    def until(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        end = time.monotonic() + 30
        while not self.js(f"return {condition}"):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.02)

    def settled(self) -> None:
        """Wait until no layout runs."""
        self.until("document.getElementById('busy').hidden && cy.nodes().length > 0")

    def js(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(code, *arguments)  # type: ignore[no-untyped-call]

    def at(self, box: str) -> ActionChains:
        """The mouse on a box of the graph."""
        x, y = self.js("const p = cy.$id(arguments[0]).renderedPosition(); return [p.x, p.y]", box)
        graph = self.browser.find_element(By.ID, "graph")
        x, y = round(x - graph.size["width"] / 2), round(y - graph.size["height"] / 2)
        return ActionChains(self.browser).move_to_element_with_offset(graph, x, y)

    def text(self, name: str) -> str:
        return self.browser.find_element(By.ID, name).text

    def boxes(self) -> set[str]:
        return set(self.js("return cy.nodes().map((node) => node.id())"))

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def messages(self) -> list[Any]:
        return list(self.browser.get_log("browser"))  # type: ignore[no-untyped-call]


@pytest.fixture
def small(browser: webdriver.Chrome, tmp_path: Path) -> Shown:
    plan, nodes = made_plan(2, 2, 3, name=EVIL)
    page = Page(
        title=EVIL,
        plan=plan,
        nodes=nodes,
        verdict=(f"It trains {EVIL}.",),
        diff=f"+ added {EVIL}\n- removed\n",
        checks=({"name": "outputs", "passed": False, "figure": EVIL},),
        curves=(Chart("loss", "step", (Series("run", (3.0, 2.0, 1.0)),)),),
    )
    write_page(tmp_path / "small.html", page)
    return Shown(browser, tmp_path / "small.html")


def test_mouse(small: Shown) -> None:
    node = f"node {EVIL}_1"
    small.at(node).perform()
    assert all(part in small.text("tip") for part in (f"{EVIL}_1", "net.py:2", "8 float32"))
    small.at(node).click().perform()
    assert "200 FLOPs" in small.text("details") and f"h = self.{EVIL}(h)" in small.text("details")

    everything = small.boxes()
    small.js("choose('segment 0')")
    small.browser.find_element(By.CSS_SELECTOR, "#details button").click()
    small.settled()
    assert {"segment 0", "cut 0", "exit 0"} < small.boxes() and node not in small.boxes()
    small.js("fit()")
    small.at("segment 0").double_click().perform()
    small.until("OPEN.has('segment 0')")
    small.settled()
    assert small.boxes() == everything
    assert small.messages() == []


def test_search_and_keys(small: Shown) -> None:
    small.browser.find_element(By.ID, "fold-all").click()
    small.settled()
    assert small.boxes() == {"segment 0", "segment 1", "cut 0", "exit 0"}
    small.press("/", "linear net.py:9", Keys.ENTER)
    found = f"node {EVIL}_8"
    small.until(f"selected === {found!r}")
    assert found in small.boxes() and small.js("return document.activeElement.id") == "graph"

    small.press(Keys.ARROW_UP)
    assert small.js("return selected") == f"node {EVIL}_7"
    small.js("choose('cut 0')")
    small.press(Keys.ARROW_UP)
    assert small.js("return selected") == "segment 0"
    small.press(Keys.ENTER)
    small.until("OPEN.has('segment 0')")
    small.press(Keys.ESCAPE)
    assert small.js("return selected") is None
    assert small.messages() == []


def test_texts_are_escaped_and_parts_are_there(small: Shown) -> None:
    assert small.text("verdict") == f"It trains {EVIL}."
    assert [one.text for one in small.browser.find_elements(By.CSS_SELECTOR, "#contents a")] == [
        "Graph", "Memory", "Segments", "Cuts", "Checks", "Curves", "Diff",
    ]  # fmt: skip
    assert "FAIL" in small.text("checks") and EVIL in small.text("diff") and EVIL in small.text("cuts")
    assert small.js("return document.querySelectorAll('img').length") == 0
    assert len(small.browser.find_elements(By.CSS_SELECTOR, "#memory canvas, #curves canvas")) == 2
    assert small.messages() == []


def test_dark_and_print(small: Shown) -> None:
    def background() -> str:
        return str(small.js("return getComputedStyle(document.body).backgroundColor"))

    light, box = background(), small.js("return cy.$id('cut 0').style('background-color')")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    small.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert background() != light
    small.until(f"cy.$id('cut 0').style('background-color') !== {box!r}")
    pdf = base64.b64decode(small.browser.print_page())
    assert pdf.startswith(b"%PDF") and b"/Image" in pdf  # the graph as it is folded
    small.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert small.messages() == []


def test_five_thousand_nodes_stay_usable(browser: webdriver.Chrome, tmp_path: Path) -> None:
    plan, nodes = made_plan(5, 100, 10)
    write_page(tmp_path / "large.html", Page("large", plan, nodes))
    start = time.monotonic()
    large = Shown(browser, tmp_path / "large.html")
    assert time.monotonic() - start < 10
    assert large.boxes() == {f"segment {k}" for k in range(5)} | {f"{w} {k}" for w in ("cut", "exit") for k in range(4)}
    large.press("/", "op_4321", Keys.ENTER)
    large.until("selected === 'node op_4321'")
    assert "node op_4321" in large.boxes() and "8 float32" in large.text("details")
    assert len(large.boxes()) < 200  # only what hides the node is unfolded
    browser.find_element(By.ID, "unfold-all").click()
    assert large.js("return document.getElementById('busy').hidden") is False  # and the page answers meanwhile
    large.until(f"cy.nodes().length === {5000 + 5 + 5 + 500 + 8}")
    assert large.messages() == []
