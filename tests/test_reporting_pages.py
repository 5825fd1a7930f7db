"""Pages in a real browser: Debian's Chromium, headless, with the network off."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import GRID, HOSTILE, looked_at, made_run, masks, rows
from PIL import Image

from vjepa.reporting.live import LivePage, LiveServer
from vjepa.reporting.writing import report, write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is of the extra `test`")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (.ci/run installs Debian's)")
FAR_S = 60  # a busy machine is no failure


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open pages; whatever they ask for, or complain of, is in `page.heard`."""
    contexts = []

    def go(address: str, *, offline: bool = True, scripts: bool = True, size: tuple[int, int] = (1280, 900)) -> Any:
        how = {"offline": offline, "java_script_enabled": scripts}
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **how)
        contexts.append(context)
        page = context.new_page()
        page.heard = []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith("data:") else page.heard.append(one.url))
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = made_run(tmp_path_factory.mktemp("runs") / "one")
    write_page(run)
    return run.page.absolute().as_uri()


def ready(page: Any) -> Any:
    page.wait_for_selector(".player.runs", timeout=1000 * FAR_S)
    return page


def until(page: Any, truth: str) -> None:
    """Wait for an expression of the page; Playwright's own way needs eval, which the policy of the page refuses."""
    end = time.monotonic() + FAR_S
    while not page.evaluate(truth):
        assert time.monotonic() < end, truth
        page.wait_for_timeout(50)


def test_it_opens_from_disk_and_asks_for_nothing(visit: Any, finished: str) -> None:
    page = ready(visit(finished))
    assert page.heard == [finished]
    assert page.locator("#probes").inner_text().count("0.900 [0.850, 0.950]") >= 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_it_says_the_same_without_scripts(visit: Any, finished: str) -> None:
    page = visit(finished, scripts=False)
    assert page.heard == [finished] and page.locator("button").count() == 0
    assert page.locator("svg .line").count() > 10 and page.locator(".strip img:visible").count() == 2 * 9
    assert "Verdict" in page.inner_text("main") and "healthy" in page.inner_text("#verdict")


def test_a_player_steps_by_buttons_and_keys_and_never_starts_by_itself(visit: Any, finished: str) -> None:
    page = ready(visit(finished))
    figure = page.locator(".player").first
    at = lambda: figure.get_attribute("data-now")  # noqa: E731 - it is asked often
    assert at() == "0" and "frame 0 (1 of 4)" in figure.inner_text()
    page.wait_for_timeout(600)
    assert at() == "0"
    figure.focus()
    seen = [at()]
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        seen.append(at())
    assert seen == ["0", "1", "2", "3", "0", "3", "0", "3"]
    figure.get_by_role("button", name="one frame back").click()
    assert at() == "2"
    figure.get_by_role("button", name="play").click()
    until(page, "document.querySelector('.player').dataset.now !== '2'")
    figure.get_by_role("button", name="stop").click()


def test_masks_in_the_page_are_those_drawn_bit_by_bit(visit: Any, finished: str) -> None:
    """As pictures in the page, and as pixels of the canvas at every frame: what is seen shows the frame as it is."""
    page = ready(visit(finished))
    drawn = masks()
    for place in range(2):
        figure = page.locator(f"#player-{place}")
        sources = figure.locator("img.covers").evaluate_all("all => all.map((one) => one.src)")
        names = [f"{name}/{number}/{place}" for number in (0, 1) for name in ("context", "target")]
        for number, (name, source) in enumerate(zip(names, sources, strict=True)):
            with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
                clear = np.asarray(picture)[..., 3] == 0
            cells = np.stack(np.split(clear, GRID[0], axis=1))
            assert (cells == drawn[name]).all()
            figure.focus()
            page.keyboard.press("Home")
            for frame in range(4):
                shown = page.evaluate(PIXELS, [place, 1 + number])
                bare = page.evaluate(PIXELS, [place, 0])
                side = shown["width"] // GRID[1]
                same = np.array(shown["data"]) == np.array(bare["data"])
                same = same.reshape(GRID[1], side, GRID[2], side, 4).all(axis=(1, 3, 4))
                assert (same == drawn[name][frame // 2]).all(), (name, frame)
                page.keyboard.press("ArrowRight")


PIXELS = """([place, number]) => {
  const canvas = document.querySelectorAll(`#player-${place} canvas`)[number];
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, data: [...data] };
}"""


def test_values_show_on_hover_and_by_keys(visit: Any, finished: str) -> None:
    page = visit(finished)
    drawing = page.locator("#training svg").first
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + box["height"] / 2)
    tip = page.locator("#training .tip").first
    assert tip.inner_text().split("\n")[:2] == ["step 100", "loss  2.01"]
    drawing.focus()
    page.keyboard.press("Home")
    assert tip.inner_text().split("\n")[:3] == ["step 1", "loss  3", "prediction  2"]
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("step 2\nloss  2.5")


def test_the_logarithmic_axis_puts_equal_factors_equally_far(visit: Any, finished: str) -> None:
    page = visit(finished)
    figure = page.locator("figure.chart", has_text="learning rate").first
    figure.get_by_role("button", name="log axis").click()
    shape = figure.locator("path.line").get_attribute("d")
    down = [float(point.split(" ")[1]) for point in shape.replace("M", "L").split("L")[1:]]
    high = {step: down[step - 1] for step in (1, 2, 4, 8)}  # lr is 1e-3 / step
    assert high[2] - high[1] == pytest.approx(high[4] - high[2], abs=0.3) == pytest.approx(high[8] - high[4], abs=0.3)


def test_hostile_words_stay_text(visit: Any, tmp_path: Path) -> None:
    run = made_run(tmp_path / "x'<b>", words=HOSTILE)
    write_page(run)
    page = ready(visit(run.page.absolute().as_uri()))
    assert page.heard == [run.page.absolute().as_uri()] and "owned" not in page.title()
    assert page.locator("script:not([type])").count() == 1 and page.locator("img[src=x], img[onerror]").count() == 0
    for part in ("#verdict", "#probes", "#clips", "#neighbours", "#mistakes", "#left-out", "#settings", "#machine"):
        assert HOSTILE[:40] in page.locator(part).evaluate("one => one.textContent"), part


@pytest.mark.parametrize("size", [(390, 800), (1280, 900)], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit: Any, finished: str, size: tuple[int, int], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = ready(visit(finished, size=size))
    page.emulate_media(color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    found = axe.Axe().run(page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert not serious


def test_a_run_of_10000_steps_is_small_and_opens_at_once(visit: Any, tmp_path: Path) -> None:
    run = made_run(tmp_path / "long", num=10_000)
    write_page(run)
    assert run.page.stat().st_size < 5e6
    page = visit(run.page.absolute().as_uri())
    took = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    assert took < 1000 * FAR_S and page.locator("#training svg").count() > 3
    points = page.locator("#training script.points").first.evaluate("one => JSON.parse(one.textContent)")
    assert all(len(series["x"]) <= 1002 for series in points["series"])


def test_runs_are_overlaid(visit: Any, tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name, num=num) for name, num in (("one", 50), ("two", 100))]
    out = tmp_path / "both.html"
    report([run.path for run in runs], out)
    page = visit(out.as_uri())
    assert page.heard == [out.as_uri()]
    loss = page.locator("#training figure.chart").first
    assert loss.locator("path.line").count() == 2 and "one" in loss.inner_text() and "two" in loss.inner_text()
    assert "optim.total_steps" in page.inner_text("#settings table")


def test_a_live_page_gains_a_point(visit: Any, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", num=30, is_over=False)
    with LiveServer(LivePage(run)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = visit(server.address, offline=False)
        count = "JSON.parse(document.querySelector('#training script.points').textContent).series[0].x.length"
        assert page.evaluate(count) == 30
        began = time.monotonic()
        with run.metrics.open("a") as file:
            file.write(json.dumps({**rows(30)[-1], "step": 31, "loss": 7.0}) + "\n")
        until(page, f"{count} === 31")
        print(f"a new point after {time.monotonic() - began:.1f} s")
        assert "step 31" in page.title() and page.locator("#training button").count() > 1
        assert all(one.startswith(server.address) for one in page.heard)
        server.shutdown()


def test_the_page_of_describe_has_players_too(visit: Any, make_video: Any, tmp_path: Path) -> None:
    from data_prep.describe import main
    from data_prep.index import build_index

    make_video("clips/a.mp4")
    build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1, progress=False)
    html = tmp_path / "x.html"
    main([str(tmp_path / "x.parquet"), "--html", str(html)])
    page = ready(visit(html.as_uri()))
    assert page.heard == [html.as_uri()] and "at 10% (1 of 5)" in page.inner_text(".player")


def test_what_is_kept_of_clips_comes_back_as_it_was() -> None:
    kept = looked_at("a")
    assert all((kept.bits(name) == mask).all() for name, mask in masks().items())
