"""Settings of generation by running vLLM servers."""

from __future__ import annotations

import shlex
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Model


class ServerConfig(Model):
    url: tuple[str, ...] = Field(min_length=1)
    """Where vLLM servers answer, such as http://gpu1:8000. Several are replicas of one another and share the work."""
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the servers' API key. The key itself belongs in no file."""
    concurrency: int = Field(default=128, ge=1, le=4096)
    """Requests that are under way at once, over all servers."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """How long one request may take."""
    attempts: int = Field(default=6, ge=1)
    """How often a request is tried while a server does not answer, is overloaded or fails."""
    update: str | None = Field(default=None, min_length=1)
    """Command that has the servers hold a new checkpoint; {checkpoint} in it is the checkpoint's directory. Without one the run
    stops after each training and says what to serve."""
    release: str | None = Field(default=None, min_length=1)
    """Command that has the servers give back their memory once a checkpoint has answered, so that training on the same GPUs
    has it. It takes `update`, which has them work again."""
    update_seconds: float = Field(default=900.0, gt=0)
    """How long either command, and the servers after `update`, may take."""

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str | list | tuple) else value

    @field_validator("url", mode="before")
    @classmethod
    def _one_url(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _come_back(self) -> ServerConfig:
        if self.release and not self.update:
            raise ValueError("release: takes `update` as well, a command that has released servers work again")
        return self

    @field_validator("update", "release")
    @classmethod
    def _is_a_command(cls, command: str | None) -> str | None:
        try:
            words = shlex.split(command) if command is not None else [""]
        except ValueError as error:
            raise ValueError(f"not a command that a shell would read: {str(error).lower()}") from None
        if not words:
            raise ValueError("expected a command, such as ./serve.sh {checkpoint}")
        return command

    @field_validator("url")
    @classmethod
    def _are_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_address(url) for url in urls))


def _address(url: str) -> str:
    """An address without the path that OpenAI's clients want.

    >>> _address("http://gpu1:8000/v1/")
    'http://gpu1:8000'
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("expected an address such as http://gpu1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address of a server holds no password, query or fragment; a key goes into `key_variable`")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
