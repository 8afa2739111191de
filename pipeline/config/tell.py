"""Who is told when a run stops, fails or ends."""

from __future__ import annotations

import re
import shlex
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline.config.base import Model

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""How an address names an environment variable."""


class TellConfig(Model):
    url: str | None = None
    """Address that a message is posted to as JSON. ${NAME} in it stands for an environment variable, so that a secret address
    is in no file: "${SLACK_WEBHOOK}", or https://example.org/hooks/${HOOK_TOKEN}."""
    payload: Literal["full", "text", "content"] = "full"
    """What is posted. full: every field of the message, `text` among them. text: {"text": …} alone, as Slack, Mattermost, Teams
    and Google Chat take it. content: {"content": …}, as Discord does."""
    command: str | None = None
    """Command that is given the message on its standard input, such as mail -s rollbook me@example.org. No shell reads it."""
    on: tuple[Literal["stopped", "failed", "finished"], ...] = Field(default=("stopped", "failed"), min_length=1)
    """Of what: a rule of `stop` ended the run; a stage failed, or something that the work needs is not there; the run's last
    iteration is evaluated."""
    timeout_seconds: float = Field(default=15.0, gt=0, le=600)
    """How long the address may take to answer, and the command to end."""

    @property
    def is_on(self) -> bool:
        return bool(self.url or self.command)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        """Where a variable holds the whole address, that is looked at when it is used."""
        if url is None or VARIABLE.match(url):
            return url
        try:
            parts = urlsplit(VARIABLE.sub("x", url))
            whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            whole = False
        if not whole:
            raise ValueError('expected an address such as https://example.org/hook, or "${VARIABLE}" that holds one')
        if parts.password and not VARIABLE.search(url):
            raise ValueError("holds a password, and would be written down. Put it into a variable: https://me:${PASSWORD}@host/")
        return url

    @field_validator("command")
    @classmethod
    def _has_words(cls, command: str | None) -> str | None:
        try:
            words = shlex.split(command) if command is not None else [""]
        except ValueError as error:
            raise ValueError(f"not a command that a shell would read: {str(error).lower()}") from None
        if not words:
            raise ValueError("expected a command, such as mail -s rollbook me@example.org")
        return command
