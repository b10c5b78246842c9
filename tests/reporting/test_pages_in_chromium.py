"""Report and explorer in a real browser: no error, no network, pointer, lasso, keyboard, contrast."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byol.encoder.encoder import load
from byol.reporting import report
from byol.reporting.embedding_map import place_by_pca, to_uint16
from byol.reporting.explorer import Explorer, open_server
from byol.reporting.report import write_report
from trained import COLOURS, HARD_NAMES, open_embedded, train_run, write_evaluation, write_measures

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

Page = Any  # of playwright, which may be missing
# Relative luminance and contrast of WCAG 2.2, of every element with text of its own, in the page.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (element) => {
    if (!element) return [255, 255, 255];
    const c = parse(getComputedStyle(element).backgroundColor), alpha = c.length === 4 ? c[3] : 1;
    if (alpha === 1) return c;
    const below = under(element.parentElement);
    return below.map((v, i) => alpha * c[i] + (1 - alpha) * v);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || element.closest("script, style")) continue;
    const style = getComputedStyle(element), isSvg = element instanceof SVGElement;
    const one = light(parse(isSvg ? style.fill : style.color));
    const two = light(under(isSvg ? element.closest("figure") : element));
    const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (contrast < 4.5 && !element.closest(".other"))
      found.push([contrast.toFixed(2), element.outerHTML.slice(0, 90)]);
  }
  return found;
}"""
# Mean colour of the picture in an element, as red, green, blue.
MEAN = """(selector) => {
  const from = document.querySelector(selector), canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16;
  const context = canvas.getContext("2d"); context.drawImage(from, 0, 0, 16, 16);
  const data = context.getImageData(0, 0, 16, 16).data, mean = [0, 0, 0];
  data.forEach((value, at) => { if (at % 4 < 3) mean[at % 4] += value / 256; });
  return mean;
}"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = train_run(tmp_path_factory.mktemp("pages"))
    write_evaluation(run_dir)
    write_measures(run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "list_slow_maps", lambda: ("t-SNE",))
        write_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def address(run_dir: Path) -> str:
    return (run_dir / "report.html").resolve().as_uri()


@pytest.fixture(scope="module")
def live(run_dir: Path) -> Iterator[str]:
    embedded = open_embedded(run_dir)
    pca = to_uint16(place_by_pca(embedded.directions, seed=0))
    with open_server(Explorer("a", "verdict", load(run_dir, device="cpu"), embedded, {"PCA": pca})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["no-sandbox", "disable-background-networking", "disable-component-update", "disable-sync"]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=[f"--{name}" for name in arguments])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    """A page on which nothing may go wrong, and that may ask only for files and this machine."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    allowed = ("file:", "data:", "blob:", "http://127.0.0.1:")
    page.on("request", lambda ask: wrong.append(ask.url) if not ask.url.startswith(allowed) else None)
    yield page
    context.close()
    assert wrong == []


def open_map(page: Page, address: str) -> dict[str, float]:
    """Opens the page; where its map is on the screen."""
    page.goto(address)
    page.wait_for_selector(".map .panel p")  # the last thing that is made
    page.locator("canvas.plane").scroll_into_view_if_needed()
    box: dict[str, float] = page.locator("canvas.plane").bounding_box()
    return box


def point_at(page: Page, box: dict[str, float], row: int) -> tuple[float, float]:
    x, y = page.evaluate(f"byolMap.screenOf({row})")
    return box["x"] + x, box["y"] + y


def find_lonely(page: Page, count: int) -> int:
    """The row that is farthest from all others on the map."""
    places = [page.evaluate(f"byolMap.screenOf({row})") for row in range(count)]

    def distance(row: int) -> float:
        x, y = places[row]
        return min((x - a) ** 2 + (y - b) ** 2 for at, (a, b) in enumerate(places) if at != row)

    return max(range(count), key=distance)


@pytest.mark.parametrize("which", ["address", "live"])
def test_hover_shows_the_right_image(
    page: Page, run_dir: Path, request: pytest.FixtureRequest, which: str
) -> None:
    box = open_map(page, request.getfixturevalue(which))
    images = open_embedded(run_dir).images
    row = find_lonely(page, len(images))
    page.mouse.move(*point_at(page, box, row))
    page.wait_for_selector(".tip:not([hidden]) .thumb")
    name = page.locator(".tip-name").text_content()
    assert name == images.names[row] or json.loads(name) == images.names[row]
    assert page.locator(".tip .thumb").get_attribute("data-row") == str(row)
    page.wait_for_timeout(300)  # until it is decoded
    mean = page.evaluate(MEAN, ".tip .thumb")
    assert mean == pytest.approx(images.images[row].mean(axis=(0, 1)), abs=12)
    colours = list(COLOURS.values())
    distances = [sum((a - b) ** 2 for a, b in zip(colour, mean, strict=True)) for colour in colours]
    nearest = distances.index(min(distances))
    assert images.class_names[images.labels[row]] == list(COLOURS)[nearest].replace("/", "_")


@pytest.mark.parametrize("which", ["address", "live"])
def test_the_lasso_lists_the_files_inside(
    page: Page, run_dir: Path, request: pytest.FixtureRequest, which: str
) -> None:
    box = open_map(page, request.getfixturevalue(which))
    names = list(open_embedded(run_dir).images.names)
    places = [point_at(page, box, row) for row in range(len(names))]
    middle = sorted(x for x, _ in places)[len(names) // 2] + 0.5
    left, top, bottom = box["x"] + 2, box["y"] + 2, box["y"] + box["height"] - 2
    corners = [(middle, top), (left, top), (left, bottom), (middle, bottom)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    inside = [name for name, (x, _) in zip(names, places, strict=True) if x < middle]
    assert 10 < len(inside) < 30
    assert page.evaluate("byolMap.selectedNames()") == inside
    assert page.locator(".chosen strong").text_content() == f"{len(inside)} images selected"
    assert page.locator(".names li").count() == len(inside)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8")
    assert lines.startswith("file,label\n") and all(name.replace('"', '""') in lines for name in inside)
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".chosen").is_hidden()


def test_the_keyboard_reaches_images_and_list(page: Page, address: str) -> None:
    open_map(page, address)
    page.locator("input[type=search]").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "plane"
    page.keyboard.press("ArrowRight")
    first = page.evaluate("byolMap.state.pinned")
    assert first >= 0 and page.locator("[aria-live]").text_content()
    visited = {first}
    for key in ("ArrowLeft", "ArrowUp", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
        visited.add(page.evaluate("byolMap.state.pinned"))
    assert len(visited) > 1
    page.keyboard.press("Enter")
    assert page.evaluate("byolMap.state.chosen.size") == 1
    for _ in range(40):  # through neighbours, classes and buttons to the list
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.names') !== null"):
            break
    assert page.evaluate("document.activeElement.closest('.names') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate("[byolMap.state.pinned, byolMap.state.chosen.size]") == [-1, 0]
    assert page.evaluate("document.activeElement.className") == "plane"


def test_zoom_and_other_maps(page: Page, address: str) -> None:
    open_map(page, address)
    before = page.evaluate("byolMap.screenOf(0)")
    page.get_by_role("button", name="zoom in").click()
    assert page.evaluate("byolMap.screenOf(0)") != before
    page.get_by_role("button", name="show everything").click()
    assert page.evaluate("byolMap.screenOf(0)") == before
    page.get_by_role("button", name="PCA").click()
    assert page.evaluate("byolMap.screenOf(0)") != before
    page.get_by_label("colour by").select_option("")
    page.get_by_label("select by name").fill("größe")
    page.keyboard.press("Enter")
    assert [name.split("/")[1] for name in page.evaluate("byolMap.selectedNames()")] == [HARD_NAMES[3]]


@pytest.mark.parametrize("which", ["address", "live"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read(page: Page, request: pytest.FixtureRequest, which: str, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    open_map(page, request.getfixturevalue(which))
    page.evaluate("byolMap.choose([0, 1, 2], false); byolMap.goTo(0)")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == theme
    assert page.evaluate(CONTRAST) == []
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") != theme
    assert page.evaluate(CONTRAST) == []


def test_nothing_is_wider_than_a_phone(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    open_map(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_paper_is_light(page: Page, address: str) -> None:
    page.emulate_media(color_scheme="dark")
    open_map(page, address)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_search_by_a_picture(page: Page, live: str, run_dir: Path) -> None:
    open_map(page, live)
    name = "blue/05.png"
    page.set_input_files("#file", run_dir.parent.parent / "images" / name)
    page.wait_for_selector("#found .thumb")
    row = list(open_embedded(run_dir).images.names).index(name)
    assert page.locator("#found .thumb").first.get_attribute("data-row") == str(row)
    assert page.evaluate("byolMap.selectedNames()").count(name) == 1
