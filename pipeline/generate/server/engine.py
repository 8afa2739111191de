"""Completions from running vLLM servers: found to hold the checkpoint first, then asked many things at once."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from pipeline.common.errors import StageFailed, UserError
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig
from pipeline.config.server import ServerConfig
from pipeline.generate.context import context_length
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.mixture.folder import MixedWith
from pipeline.generate.server.client import Client, ServerRefused, Unanswered
from pipeline.generate.server.protocol import reply_of, request_of
from pipeline.generate.server.served import Expected, Served, WrongModelServed, examine
from pipeline.run.process import Reporter
from pipeline.store import Artifact

OF_THE_REQUEST = frozenset({400, 413, 422})
"""Statuses that refuse this request; any other final one refuses whoever asks."""
LOOK_SECONDS = 2.0
"""Between two looks at servers that are to take a new checkpoint."""


class Servers:
    """Running servers in place of an engine of this process."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self._config: ServerConfig | None = None
        self._policy: Artifact | None = None

    def rest(self) -> None:
        """Servers are the user's, and stay, but for what the user has them give back.

        Raises:
            StageFailed, UserError: the command fails, or there is none of that name.
        """
        if self._config and self._config.release and self._policy:
            _have_done("release", self._config.release, self._policy, self._config.update_seconds)

    def engine_for(
        self,
        policy: Artifact,
        config: EngineConfig,
        dtype: str,
        probes: Sequence[list[int]],
        reporter: Reporter,
        *,
        trust_remote_code: bool,
        mixed: MixedWith | None,
        cluster: ClusterConfig | None,
    ) -> ServedEngine:
        """Servers that hold a checkpoint.

        Args:
            probes: prompts that each server answers for its check.

        Raises:
            StageFailed: a server does not answer, or holds another checkpoint; says what to start.
            UserError: a server that cannot give what rollouts need.
        """
        assert config.server and mixed is None, "the config refuses a mixture by servers"
        self._config, self._policy = config.server, policy
        client = Client(config.server)
        context = context_length(policy.path, config, trust_remote_code=trust_remote_code)
        expected = Expected(policy, dtype, context, probes, trust_remote_code)
        served = _all_served(client, expected, config.server, reporter)
        self.notes = {"servers": {url: one.root for url, one in served.items()}}
        return ServedEngine(client, served, config.server.concurrency, context, dtype)


def _all_served(client: Client, expected: Expected, config: ServerConfig, reporter: Reporter) -> dict[str, Served]:
    """What each server holds, once it is the checkpoint."""
    reporter.note(f"asking {', '.join(config.url)}")
    if not config.release:  # one that was released answers nobody, or nothing that is worth it
        try:
            return {url: _examined(client, url, expected) for url in client.urls}
        except StageFailed:
            if config.update is None:
                raise
    assert config.update
    reporter.note(f"having the servers take the checkpoint of iteration {expected.policy.summary['iteration']}")
    _have_done("update", config.update, expected.policy, config.update_seconds)
    deadline = time.monotonic() + config.update_seconds
    while True:
        try:
            return {url: _examined(client, url, expected) for url in client.urls}
        except StageFailed:
            if time.monotonic() > deadline:
                raise
        time.sleep(LOOK_SECONDS)


def _examined(client: Client, url: str, expected: Expected) -> Served:
    """
    Raises:
        StageFailed: it does not answer, or holds something else.
        UserError: it will not, whoever asks, or cannot give what rollouts need.
    """
    start = f"Start it with\n  {expected.command}\nand run the same command again; it goes on from there"
    try:
        return examine(client, url, expected)
    except Unanswered as problem:
        raise StageFailed(f"{problem}. {start}") from None
    except WrongModelServed as other:
        iteration = expected.policy.summary["iteration"]
        raise StageFailed(f"{url}: {other}. The checkpoint of iteration {iteration} must answer. {start}") from None
    except ServerRefused as refusal:
        raise UserError(f"{url}: refuses a probe, {refusal}{_remedy(refusal)}") from None


def _remedy(refusal: ServerRefused) -> str:
    if refusal.status in (401, 403):
        return ". Name the environment variable that holds its API key in engine.server.key_variable"
    return "" if refusal.status in OF_THE_REQUEST else ". Is it a vLLM server, at that address?"


def _have_done(name: str, line: str, policy: Artifact, seconds: float) -> None:
    """Run a command of the user's. What it starts lives on when this process ends.

    Raises:
        UserError: there is no such command.
        StageFailed: it fails, or takes too long.
    """
    command = [part.replace("{checkpoint}", str(policy.path.resolve())) for part in shlex.split(line)]
    what = f"engine.server.{name}"
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            stderr=sys.stderr.fileno(),
            start_new_session=True,
            timeout=seconds,
        )
    except OSError as error:
        raise UserError(f"{what}: {command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise StageFailed(f"{what}: took more than update_seconds={seconds:g}. It must set things going and return") from None
    if ended.returncode:
        raise StageFailed(f"{what}: ended with status {ended.returncode}; its output is in the stage's log")


class ServedEngine:
    """Servers with the weights of one checkpoint."""

    tokens: list[int] = []

    def __init__(self, client: Client, served: dict[str, Served], concurrency: int, context: int, dtype: str) -> None:
        self._client = client
        names = {one.model for one in served.values()}
        self._model = names.pop() if len(names) == 1 else None
        self._shortest = min(one.max_model_len for one in served.values())
        self._concurrency = concurrency
        self._context = context
        self._bell: Future[None] = Future()
        self._rings = threading.Lock()
        self.name = f"vllm {'/'.join(sorted({one.version for one in served.values()}))} server {dtype}"

    def wake(self) -> None:
        """There may be more requests now. From any thread."""
        with self._rings:
            if not self._bell.done():
                self._bell.set_result(None)

    def _heard_bell(self) -> None:
        with self._rings:
            if self._bell.done():
                self._bell = Future()

    def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[list[Reply]]:
        """Generate completions, `concurrency` at once whatever an engine would take, and yield them as they finish.

        A request that its server refuses or cannot answer while it is well gives a reply with an error.

        Args:
            asks: requests of one group together; an empty one says that there is nothing now, and may be later: see `wake`.

        Raises:
            StageFailed: no server is well.
            UserError: a server whose answers cannot be used.
        """
        pool = ThreadPoolExecutor(self._concurrency, "ask")
        waiting: set[Future[Reply]] = set()
        numbers = itertools.count()
        try:
            for several in asks:
                for ask in several:
                    waiting.add(pool.submit(self._answer, ask, next(numbers)))
                while len(waiting) >= self._concurrency:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield [future.result() for future in done]
                if not several:
                    rung: list[Future[Any]] = [*waiting, self._bell]
                    wait(rung, return_when=FIRST_COMPLETED)
                    done = {future for future in waiting if future.done()}
                    self._heard_bell()
                    waiting -= done
                    yield [future.result() for future in done]
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield [future.result() for future in done]
        finally:
            self._client.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, ask: CompletionRequest, number: int) -> Reply:
        first = number % len(self._client.urls)
        urls = self._client.urls[first:] + self._client.urls[:first]
        most = min(ask.sampling.max_tokens, self._context - len(ask.prompt_token_ids))
        if len(ask.prompt_token_ids) + most > self._shortest:
            raise UserError(
                f"{urls[0]}: holds at most {self._shortest} tokens of prompt and completion; one of these may take "
                f"{len(ask.prompt_token_ids) + most}. Start the servers with --max-model-len {self._context}"
            )
        try:
            answer = self._client.ask(urls, "/v1/completions", request_of(ask, self._model, most))
            return reply_of(ask, answer, urls[0], most)
        except ServerRefused as refusal:
            if refusal.status not in OF_THE_REQUEST:
                raise UserError(f"{urls[0]}: refuses, {refusal}{_remedy(refusal)}") from None
            return Reply(ask.key, [], [], None, None, str(refusal))
        except Unanswered as problem:
            if not self._client.is_well():
                raise StageFailed(f"{problem}. Finished shards are kept; start it again, and the same command goes on") from None
            return Reply(ask.key, [], [], None, None, str(problem))
