"""What a page says of runs in any state, and what `--live` answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_run, rows

from vjepa.errors import UserError
from vjepa.reporting import curves, run_page, settings_table
from vjepa.reporting.curves import Chart, Series
from vjepa.reporting.live import LivePage, LiveServer
from vjepa.reporting.record import RunRecord
from vjepa.run_folder import RunFolder


def page(run: RunFolder) -> str:
    return run_page.page([RunRecord.read(run)])


@pytest.mark.fast
def test_a_crashed_run_says_how_it_goes_on(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", is_over=False)
    with run.metrics.open("a") as file:
        file.write('{"step": 101, "lo')  # the line that a crash cut short
    record = RunRecord.read(run)
    assert record.state == "unfinished" and record.step == 100 and record.log.damaged == 0
    assert any(f"python -m vjepa.train --config {run.config}" in line for line in record.first())
    assert "before its end" in page(run)


@pytest.mark.fast
def test_numbers_that_are_not_finite_are_named_and_leave_a_gap(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", is_over=False)
    with run.metrics.open("a") as file:
        file.write('{"step": 101, "loss": NaN, "lr": 1.0}\n{"step": 102, "loss": Infinity}\n{"step": 103, "loss": 1}\n')
    record = RunRecord.read(run)
    assert record.not_finite == {"loss": 101} and "loss is not finite from step 101 on" in record.headline()
    assert "lower optim.lr" in record.first()[0]
    written = page(run)
    assert "NaN" not in written and "Infinity" not in written
    broken = curves.draw(Chart("a", (Series("a", np.arange(4.0), np.array([1.0, np.nan, 2.0, 3.0])),)))
    assert broken.split('d="')[1].split('"')[0].count("M") == 2


@pytest.mark.fast
def test_a_run_before_its_first_row_has_a_page(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", is_over=False)
    run.metrics.unlink()
    assert "nothing was logged yet" in page(run)
    run.config.write_text("optim: {a_key_of_tomorrow: 1}\n")
    run.environment.write_text("{")
    record = RunRecord.read(run)
    assert len(record.problems) == 2 and record.settings is None and "a_key_of_tomorrow" in page(run)


@pytest.mark.fast
@pytest.mark.parametrize("num", [50_000, 30])
def test_thinned_curves_keep_their_extremes_and_what_is_not_finite(num: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=num)
    y[num // 3], y[num // 2], y[num // 5] = 50, -50, np.nan
    kept = curves.thin(Series("a", np.arange(float(num)), y), 1000)
    assert len(kept.x) <= min(num, 1003) and (np.diff(kept.x) > 0).all()
    assert np.nanmax(kept.y) == 50 and np.nanmin(kept.y) == -50 and np.isnan(kept.y).any()
    assert all(y[int(x)] == value or np.isnan(value) for x, value in zip(kept.x, kept.y, strict=True))
    assert (kept.x[0], kept.x[-1]) == (0, num - 1)


@pytest.mark.fast
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12), (1e-6, 3e-6), (0.98, 1.0), (0, 98765)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = curves.nice_ticks(low, high, 5)
    assert 2 <= len(found) <= 11 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert len({round(b - a, 12) for a, b in pairwise(found)}) == 1


@pytest.mark.fast
def test_settings_that_differ_come_first(tmp_path: Path) -> None:
    one, two = made_run(tmp_path / "one", 50), made_run(tmp_path / "two", 100)
    changed = {path: (value, default) for path, value, default in settings_table.changed(RunRecord.read(one))}
    assert changed["model.encoder.width"][0] == "24" and "data.start" not in changed
    assert changed["optim.ema_decay"][0] == "0.9"
    both = settings_table.settings([RunRecord.read(one), RunRecord.read(two)])
    table = both.partition("</table>")[0]
    assert "optim.total_steps" in table and "run.dir" in table and "model.encoder.width" not in table


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[RunFolder, int]]:
    run = made_run(tmp_path / "run", is_over=False)
    (tmp_path / "secret.txt").write_text("secret")
    with LiveServer(LivePage(run)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield run, server.server_port
        server.shutdown()


def ask(port: int, request: str, **headers: str) -> tuple[int, str]:
    """Send a request as it is written, as no library would: status and body."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{request} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


PATHS = ["/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/config.yaml", "//etc/passwd", "/new"]
PATHS += [
    "/new?from=-1",
    "/new?from=1e3",
    "/?x",
    "/metrics.jsonl",
    "http://other/",
    "/checkpoints/",
    "/new/../../secret.txt",
]


@pytest.mark.parametrize("path", PATHS)
def test_there_is_one_page_and_no_way_to_files(live: tuple[RunFolder, int], path: str) -> None:
    _, port = live
    status, body = ask(port, f"GET {path}", Host=f"127.0.0.1:{port}")
    assert status == 404 and "secret" not in body


def test_other_hosts_origins_and_methods_are_refused(live: tuple[RunFolder, int]) -> None:
    _, port = live
    own = f"127.0.0.1:{port}"
    assert ask(port, "GET /", Host=own)[0] == ask(port, "GET /", Host=f"localhost:{port}")[0] == 200
    assert ask(port, "GET /", Host=own, Origin=f"http://{own}")[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"127.0.0.1:{port + 1}"},
        {},
        {"Host": own, "Origin": "http://evil.example"},
        {"Host": own, "Origin": "null"},
        {"Host": own, "Sec_Fetch_Site": "cross-site"},
    ):
        assert ask(port, "GET /", **headers)[0] == 403, headers
    assert all(ask(port, f"{method} /", Host=own)[0] == 501 for method in ("POST", "PUT", "DELETE", "OPTIONS"))


def test_news_come_from_a_byte_on_and_nothing_is_written(live: tuple[RunFolder, int]) -> None:
    run, port = live
    size, before = run.metrics.stat().st_size, sorted(run.path.iterdir())
    host = f"127.0.0.1:{port}"
    assert ask(port, f"GET /new?from={size}", Host=host) == (204, "")
    with run.metrics.open("a") as file:
        file.write(json.dumps({**rows(30)[-1], "step": 101}) + "\n" + '{"step": 102')
    status, body = ask(port, f"GET /new?from={size}", Host=host)
    news = json.loads(body)
    assert status == 200 and set(news["parts"]) == {"verdict", "training", "health"}
    assert size < news["offset"] < run.metrics.stat().st_size and "step 101" in news["title"]  # the whole lines
    run.metrics.write_text(json.dumps(rows(30)[1]) + "\n")  # a resumed run writes its log anew
    assert json.loads(ask(port, "GET /new?from=9", Host=host)[1])["offset"] == run.metrics.stat().st_size
    assert sorted(run.path.iterdir()) == before


@pytest.mark.parametrize("name", ["metrics", "summary", "environment", "config", "shown"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    run = made_run(tmp_path / "run")
    path = getattr(run, name)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of the run folder"):
        LivePage(run)
