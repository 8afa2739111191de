"""Requests over HTTP."""

from __future__ import annotations

import urllib.request
from email.message import Message
from typing import IO


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """For an opener whose requests carry a key: a redirect could lead it to another host, so none is followed."""

    def redirect_request(self, request: object, file: IO[bytes], code: int, message: str, headers: Message, url: str) -> None:
        return None
