"""The page's server: it gives a browser the newest labeled frame each time it asks, and nothing to anyone else."""

from __future__ import annotations

import hmac
import json
import threading
import time
from dataclasses import dataclass
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

from fer_ray.config.jobs.live import LiveConfig
from fer_ray.errors import UsageError
from fer_ray.live.camera import Frame

QUALITY = 80  # of the JPEG that is shown
WAIT_SECONDS = 10.0  # for a newer frame; the browser asks again
MAX_WIDTH = 1280  # pixels: more is not shown
MAX_VIEWERS = 16
COOKIE = "fer_ray_live"


@dataclass(frozen=True)
class Shown:
    """A labeled frame as the page shows it: a JPEG, and what is told about it (JSON)."""

    number: int
    jpeg: bytes
    facts: dict[str, Any]
    taken: float


class LiveServer(ThreadingHTTPServer):
    """Serves the page and the newest frame.

    Raises:
        UsageError: the address or the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, config: LiveConfig, page: str) -> None:
        try:
            super().__init__((config.host, config.port), _Handler)
        except OSError as error:
            raise UsageError(
                f"The page cannot be served at {config.host}:{config.port} ({error.strerror}): give another --port."
            ) from error
        self.config, self.page = config, page.encode()
        self.viewers = threading.BoundedSemaphore(MAX_VIEWERS)
        self._newest: Shown | None = None
        self._changed = threading.Condition()
        self._waiting = 0
        threading.Thread(target=self.serve_forever, name="server", daemon=True).start()

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.server_address[1]}/"

    def show(self, frame: Frame, facts: dict[str, Any]) -> None:
        """Make this the newest frame; it is compressed only where somebody looks."""
        if not self._waiting:
            return
        pixels = frame.pixels
        scale = min(1.0, MAX_WIDTH / pixels.shape[1])
        if scale < 1:
            pixels = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        with self._changed:
            self._newest = Shown(frame.number, jpeg, facts, frame.taken)
            self._changed.notify_all()

    def after(self, number: int) -> Shown | None:
        """The newest frame once it is newer than this one; None where none came in time."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._newest and self._newest.number > number, WAIT_SECONDS)
            finally:
                self._waiting -= 1
            return self._newest if self._newest and self._newest.number > number else None


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    protocol_version = "HTTP/1.1"  # one connection for all frames
    timeout = 60

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if not self._is_welcome(query.get("token", [""])[0]):
            self._answer(403, b"This page is for those who have its address.", "text/plain")
        elif parts.path == "/":
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        elif parts.path == "/frame":
            self._answer_with_frame(query.get("after", ["0"])[0])
        else:
            self._answer(404, b"There is no such page.", "text/plain")

    def _is_welcome(self, token: str) -> bool:
        """Another site must not read the page through a name of its own (DNS rebinding), nor anyone without the token."""
        config = self.server.config
        if not config.token:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            return name in ("localhost", "127.0.0.1", "::1", config.host)
        kept = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        given = token or (kept.value if kept else "")
        return hmac.compare_digest(given.encode(), config.token.encode())

    def _answer_with_frame(self, after: str) -> None:
        if not self.server.viewers.acquire(blocking=False):
            self._answer(503, b"Too many are looking.", "text/plain")
            return
        try:
            shown = self.server.after(int(after) if after.isdecimal() and len(after) < 12 else 0)
        finally:
            self.server.viewers.release()
        if shown is None:
            self._answer(204, b"", "text/plain")
            return
        age = {"server_ms": round(1000 * (time.monotonic() - shown.taken), 1)}
        self._answer(200, shown.jpeg, "image/jpeg", {"X-Faces": json.dumps({**shown.facts, **age})})

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        token = self.server.config.token
        if status == 200 and token:
            self.send_header("Set-Cookie", f"{COOKIE}={token}; HttpOnly; SameSite=Strict")
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in {**fixed, **(headers or {})}.items():
            if status != 204 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: addresses hold the token."""
