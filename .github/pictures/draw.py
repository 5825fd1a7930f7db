"""Draw the pictures of the README from a real run: python .github/pictures/draw.py runs/demo

The way of the data with the shapes of that run, its masks, what its features tell apart, and its report as a browser
shows it (Chromium, through Playwright: extra `test`).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from playwright.sync_api import sync_playwright

from vjepa import config
from vjepa.masking.draw import plan
from vjepa.reporting.pictures import new_figure
from vjepa.reporting.writing import report
from vjepa.run_folder import RunFolder

HERE = Path(__file__).parent
WIDTH, HEIGHT = 2.25, 0.86


def main(path: Path) -> None:
    run = RunFolder(path)
    settings = config.load_run(run.config)
    if not isinstance(settings, config.Config):
        raise SystemExit(f"{path}: give a run of pre-training")
    report([path], None)
    data_flow(HERE / "flow.png", settings)
    shutil.copy(run.pictures / "mask.png", HERE / "mask.png")
    shutil.copy(run.pictures / "features_pca.png", HERE / "features.png")
    screenshot(run, HERE / "report.png")


def data_flow(path: Path, settings: config.Config) -> None:
    """Draw what becomes of a clip in a step, with the shapes of a run."""
    data, grid, width = settings.data, settings.grid, settings.model.known_width
    mask = plan(settings.masks, grid).draw(1, settings.run.seed, 0, 0, 1)[0]
    seen, hidden = mask.context_ids.shape[1], mask.target_ids.shape[1]
    t, h, w = data.clip_size
    batch = data.global_batch
    boxes = {
        (0, 1): ("clip index", "one row a video:\nwhat decodes, true times"),
        (1, 1): ("clips", f"uint8 [{batch}, {data.channels.num}, {t}, {h}, {w}]"),
        (2, 1): ("tokens", f"{grid.t} x {grid.h} x {grid.w} = {grid.num_tokens} a clip"),
        (3, 2): ("context encoder", f"[{batch}, {seen}, {width}]\nwhat a mask leaves visible"),
        (3, 0): ("target encoder", f"[{batch}, {grid.num_tokens}, {width}]\nsees all, no gradient"),
        (4, 2): ("predictor", f"[{batch}, {hidden}, {width}]\nfeatures of hidden tokens"),
        (5, 1): ("loss", "predicted against\ntarget features"),
    }
    arrows = [((0, 1), (1, 1)), ((1, 1), (2, 1)), ((2, 1), (3, 2)), ((2, 1), (3, 0)), ((3, 2), (4, 2))]
    arrows += [((4, 2), (5, 1)), ((3, 0), (5, 1))]
    figure = new_figure(13.6, 3.3)
    axes = figure.subplots()
    axes.set(xlim=(-0.2, 6 * WIDTH + 0.1), ylim=(-0.3, 3.2))
    axes.set_axis_off()
    middles = {place: (place[0] * WIDTH + WIDTH / 2 - 0.15, place[1] * 1.1 + HEIGHT / 2) for place in boxes}
    for place, (name, said) in boxes.items():
        x, y = middles[place]
        shape = (x - WIDTH / 2 + 0.15, y - HEIGHT / 2)
        axes.add_patch(FancyBboxPatch(shape, WIDTH - 0.35, HEIGHT, "round,pad=0.03", fc="#e8f1fb", ec="#2b6cb0"))
        axes.text(x - 0.02, y + 0.24, name, ha="center", va="center", fontsize=11, weight="bold", color="#222222")
        axes.text(x - 0.02, y - 0.13, said, ha="center", va="center", fontsize=8.5, color="#333333")
    for start, end in arrows:
        (x0, y0), (x1, y1) = middles[start], middles[end]
        way = (x0 + WIDTH / 2 - 0.17, y0), (x1 - WIDTH / 2 + 0.1, y1)
        axes.add_patch(FancyArrowPatch(*way, arrowstyle="-|>", mutation_scale=13, color="#555555"))
    x, high = middles[(3, 0)][0] - 0.02, middles[(3, 2)][1] - HEIGHT / 2 - 0.05
    arrow = FancyArrowPatch(
        (x, high), (x, middles[(3, 0)][1] + HEIGHT / 2 + 0.05), arrowstyle="-|>", mutation_scale=13, linestyle="--"
    )
    axes.add_patch(arrow)
    axes.text(x + 0.08, high - 0.62, "moving average", fontsize=8.5, color="#333333")
    figure.savefig(path, facecolor="white")


def screenshot(run: RunFolder, path: Path) -> None:
    """Take the top of a report, and its clips, as a browser on a desk shows them."""
    chromium = next(
        found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1320}, color_scheme="light")
        page.goto(run.page.absolute().as_uri())
        page.wait_for_selector(".player.runs")
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
