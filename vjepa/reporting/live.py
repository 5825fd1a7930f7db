"""Show a run while it trains, to browsers of this machine alone. Nothing is written, and nothing is read but the files
of the run that the page is made of.
"""

from __future__ import annotations

import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from vjepa.errors import UserError
from vjepa.reporting import run_page
from vjepa.reporting.record import RowReader, RunRecord
from vjepa.run_folder import RunFolder

HOST: Final = "127.0.0.1"
_OFFSET: Final = re.compile(r"\d{1,18}")


class LivePage:
    """Render the page of one run, and what is new in it since a byte of its log. Requests come on several threads."""

    def __init__(self, run: RunFolder) -> None:
        """Take a run folder. Raises UserError where it is none, or where a file of it leads elsewhere."""
        self.run, self.log, self.lock = run, RowReader.of(run), threading.Lock()
        self._check_inside()

    def _check_inside(self) -> None:
        """Refuse files that are links out of the folder: a page must not carry what lies elsewhere."""
        root = self.run.path.resolve()
        for path in (self.run.config, self.run.metrics, self.run.summary, self.run.environment, self.run.shown):
            if path.is_symlink() or (path.exists() and path.resolve().parent != root):
                raise UserError(f"{path}: leads out of the run folder; --live shows the files of the folder alone")

    def page(self) -> str:
        """Write the whole page."""
        with self.lock:
            return run_page.page([self._record()], is_live=True)

    def news(self, offset: int) -> dict[str, Any] | None:
        """Give the parts that changed since byte `offset` of the log; None where nothing was logged since."""
        with self.lock:
            record = self._record()
            if self.log.offset == offset:
                return None
            parts = run_page.moving([record])
            return {"offset": self.log.offset, "title": run_page.title([record]), "parts": parts}

    def _record(self) -> RunRecord:
        self._check_inside()
        return RunRecord.read(self.run, self.log)


class LiveServer(ThreadingHTTPServer):
    """Serve one page on 127.0.0.1. Port 0 takes any that is free."""

    daemon_threads = True

    def __init__(self, page: LivePage, port: int = 0) -> None:
        """Raise UserError where the port is taken."""
        self.page = page
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; give another, or none for any that is free") from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    @property
    def own_hosts(self) -> set[str]:
        """Name this server as browsers may: other names are those of pages that try to read it (DNS rebinding)."""
        return {f"{name}:{self.server_port}" for name in (HOST, "localhost")}


class _Handler(BaseHTTPRequestHandler):
    """Answer `/` and `/new?from=BYTE`, and nothing else."""

    server: LiveServer
    server_version = "vjepa"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float] = 30.0

    def do_GET(self) -> None:
        if not self._is_own():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this page answers its own address alone\n")
            return
        try:
            self._route()
        except UserError as error:
            self._answer(HTTPStatus.CONFLICT, "text/plain", f"{error}\n")

    do_HEAD = do_GET

    def _route(self) -> None:
        asked = urlsplit(self.path)
        if self.path == "/":
            self._answer(HTTPStatus.OK, "text/html", self.server.page.page())
            return
        offset = parse_qs(asked.query).get("from", [""])[0]
        if asked.path != "/new" or not _OFFSET.fullmatch(offset):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is one page here: /\n")
            return
        news = self.server.page.news(int(offset))
        if news is None:
            self._answer(HTTPStatus.NO_CONTENT, "text/plain", "")
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(news))

    def _is_own(self) -> bool:
        """Tell whether the request is of this page: addressed to it, and of no other origin."""
        hosts, origin = self.server.own_hosts, self.headers.get("Origin")
        is_ours = origin is None or origin in {f"http://{host}" for host in hosts}
        site = self.headers.get("Sec-Fetch-Site", "none")
        return self.headers.get("Host", "") in hosts and is_ours and site in ("none", "same-origin")

    def _answer(self, status: HTTPStatus, kind: str, content: str) -> None:
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NO_CONTENT:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of each request."""


def serve(path: Path, port: int) -> None:
    """Show the run at `path` until Ctrl-C. Raises UserError."""
    page = LivePage(RunFolder(path))
    page.page()  # what is wrong with the folder should show here
    with LiveServer(page, port) as server:
        print(f"{path}: {server.address} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
