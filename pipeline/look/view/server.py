"""Serves screens to this machine alone, under an address that nobody guesses. It answers GET and HEAD, and writes nothing.

`FormServer` takes what forms of its own pages send, too.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.common.errors import UserError
from pipeline.common.text import visible
from pipeline.look.view.screens import Screen

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""What a browser on this machine calls it, also through a forwarded port. Any other name was made to lead here."""
TOKEN_BYTES = 18
IDLE_SECONDS = 30.0
"""How long a connection may say nothing."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


LONGEST_FORM = 1 << 16
"""Bytes of what a form sends."""


class Pages(Protocol):
    """What is served."""

    @property
    def policy(self) -> str:
        """The pages' Content-Security-Policy."""

    def show(self, name: str, asked: Mapping[str, str]) -> Screen | None:
        """The screen of an address, by the end of its path and its query; None where there is none."""


class Forms(Pages, Protocol):
    """Pages that take something."""

    def take(self, name: str, given: Mapping[str, str]) -> bool:
        """Do what a form asks for, by the end of its path and its fields. Returns whether there is such a form."""


class ViewServer(ThreadingHTTPServer):
    """Answers on the loopback interface.

    Args:
        screens: what it serves.
        port: where; a free one by default.

    Raises:
        UserError: the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, screens: Pages, port: int = 0) -> None:
        self.screens, self.token = screens, secrets.token_urlsafe(TOKEN_BYTES)
        try:
            super().__init__((HOST, port), self._answers())
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; choose another with --port") from None

    def _answers(self) -> type[BaseHTTPRequestHandler]:
        return _Handler

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SECONDS

    @property
    def _served(self) -> ViewServer:
        return cast(ViewServer, self.server)

    def _asked(self) -> tuple[list[str], dict[str, str]] | None:
        """The parts of the path behind the token, and the query; None if this was refused."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].rpartition(":")[0] not in NAMES:
            self._say(421, "this page is for browsers on the machine that serves it: http://127.0.0.1 or http://localhost")
            return None
        try:
            parts = urlsplit(self.path)
            _, token, *names = unquote(parts.path, errors="strict").split("/")
            asked = dict(parse_qsl(parts.query, errors="strict", max_num_fields=50))
        except ValueError:
            self._say(400, "not an address of this page")
            return None
        if not hmac.compare_digest(token.encode(), self._served.token.encode()):
            self._say(404, "no page there. The address that was printed has a token in it")
            return None
        return names, asked

    def do_GET(self) -> None:
        if (found := self._asked()) is None:
            return
        names, asked = found
        if not names:  # relative links take the slash
            self._say(308, "", {"Location": f"/{self._served.token}/"})
            return
        try:
            screen = self._served.screens.show("/".join(names), asked)
        except Exception as error:
            print(f"rollbook: {type(error).__name__}: {visible(str(error))}", flush=True)
            self._say(500, f"this page could not be made ({type(error).__name__}); `rollbook audit` looks at every file")
            return
        if screen is None:
            self._say(404, "no page there")
            return
        self._send(screen.status, "text/html; charset=utf-8", screen.html.encode(errors="replace"))

    do_HEAD = do_GET

    def _say(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        own = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": self._served.screens.policy}
        self.send_response(status)
        for name, value in {**HEADERS, **own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):  # the browser went away
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses: another method, a line that is no request."""
        self.command = getattr(self, "command", None) or "GET"
        self._say(code, "not answered: this page is only read, by GET")

    def version_string(self) -> str:
        return "rollbook"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request's line holds the token."""


class _FormHandler(_Handler):
    """What a form sends is done, and the browser is led back to the page."""

    def do_POST(self) -> None:
        if (found := self._asked()) is None:
            return
        names, _ = found
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length[:9]) <= LONGEST_FORM):
            self._say(413, "not a form of this page")
            return
        try:
            given = dict(parse_qsl(self.rfile.read(int(length)).decode(), errors="strict", max_num_fields=50))
            is_there = cast(Forms, self._served.screens).take("/".join(names), given)
        except ValueError:
            self._say(400, "not a form of this page")
            return
        except UserError as error:
            self._say(500, visible(str(error)))
            return
        if is_there:
            self._say(303, "", {"Location": f"/{self._served.token}/"})
        else:
            self._say(404, "no form there")


class FormServer(ViewServer):
    """A `ViewServer` that takes forms."""

    def _answers(self) -> type[BaseHTTPRequestHandler]:
        return _FormHandler

    def __init__(self, screens: Forms, port: int = 0) -> None:
        super().__init__(screens, port)
