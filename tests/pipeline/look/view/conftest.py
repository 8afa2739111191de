"""A page over the run of `finished`, served to this process."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pipeline.look.view.parts import parts_of
from pipeline.look.view.pool import RowPool
from pipeline.look.view.screens import Screens
from pipeline.look.view.server import ViewServer


class Page:
    """Asks a server as a browser would."""

    def __init__(self, server: ViewServer) -> None:
        self.server = server

    def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, str, http.client.HTTPMessage]:
        """Status, text and headers of the answer to a whole path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, answer.msg

    def show(self, name: str = "", **query: object) -> str:
        """The page of an address."""
        status, text, _ = self.ask(f"/{self.server.token}/{name}?{urlencode(query)}")
        assert status == 200, text
        return text


@pytest.fixture
def served() -> Iterator[Callable[..., Page]]:
    """served(run, store): a page over some places."""
    servers: list[ViewServer] = []

    def serve(*places: Path | str) -> Page:
        server = ViewServer(Screens(RowPool(parts_of([str(place) for place in places])), "a title"))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Page(server)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
