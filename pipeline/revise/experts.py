"""Who corrects a completion: a rule, a function, a file, a server, or a model that vLLM runs here.

A new one is a class with `revise` and a line in `reviser_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from pipeline.common.errors import DataError, UserError
from pipeline.common.limits import within
from pipeline.common.lines import one_line
from pipeline.common.own_code import own_function
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.config.revise import ReviseConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.live import LiveEngine
from pipeline.revise.order import A_REVISER
from pipeline.rewards.graders.chat import ChatServer, NoAnswer, check_server, key_of
from pipeline.rewards.graders.template import filled
from pipeline.rewards.items import RewardItem
from pipeline.run.process import Reporter
from pipeline.sources.rendering import chat_renderer
from pipeline.sources.tokenizer import encode, load_tokenizer
from pipeline.store import Artifact

COLUMNS = ("prompt_id", "completion", "revised")
"""Of a file of corrections."""
READERS: Mapping[str, Callable[[Path], pl.DataFrame]] = {
    ".jsonl": lambda path: pl.read_ndjson(path.read_bytes(), infer_schema_length=None),
    ".parquet": lambda path: pl.read_parquet(path, glob=False),
    ".csv": lambda path: pl.read_csv(path, infer_schema=False, glob=False),
}


@dataclass(frozen=True)
class Correction:
    """What an expert made of a completion."""

    text: str | None
    """The whole corrected text, which may be the completion itself."""
    note: str | None = None
    """Why there is none."""


class Reviser(Protocol):
    """Who corrects completions."""

    name: str
    """What is recorded with every correction."""

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        """What becomes of each completion, in their order."""


def reviser_of(
    config: ReviseConfig,
    reviser: Artifact | None,
    engine: EngineConfig,
    dtype: str,
    reporter: Reporter,
    *,
    trust_remote_code: bool,
) -> Reviser:
    """The expert that a config names.

    Args:
        reviser: the model that vLLM runs, if one is named.

    Raises:
        UserError: it is not there, or cannot be used.
    """
    match config.by:
        case "pattern":
            return ByPattern(str(config.pattern))
        case "function":
            return ByFunction(str(config.function), config.args, config.timeout)
        case "file":
            return ByFile(Path(str(config.file)))
        case "url":
            return ByServer(config)
        case _:
            assert reviser is not None
            return ByModel(config, reviser, engine, dtype, reporter, trust_remote_code=trust_remote_code)


class ByPattern:
    """The reference answer in the place where a pattern finds the completion's."""

    def __init__(self, pattern: str) -> None:
        self.name = f"revise pattern {pattern}"
        self._pattern = compiled(pattern)

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        return [self._of(item) for item in asked]

    def _of(self, item: RewardItem) -> Correction:
        if item.answer is None:
            return Correction(None, "the prompt has no reference answer")
        *_, last = (None, *self._pattern.finditer(item.completion))
        if last is None:
            return Correction(None, "no match of revise.pattern")
        start, end = last.span(1 if self._pattern.groups else 0)
        return Correction(item.completion[:start] + item.answer + item.completion[end:])


def compiled(pattern: str) -> re.Pattern[str]:
    """
    Raises:
        UserError: not a regular expression.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"revise.pattern: {pattern!r} is not a regular expression: {error}") from None


class ByFunction:
    """A function of the user's."""

    def __init__(self, named: str, args: Mapping[str, Any], seconds: float) -> None:
        self.name = f"revise function {named}"
        self._function, self._args, self._seconds = own_function(named, A_REVISER), args, seconds

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        return [self._of(item) for item in asked]

    def _of(self, item: RewardItem) -> Correction:
        try:
            with within(self._seconds, f"took longer than revise.timeout, {self._seconds:g} s"):
                found = self._function(item.completion, item.answer, dict(item.prompt), **self._args)
        except Exception as error:
            return Correction(None, one_line(f"{type(error).__name__}: {error}"))
        if found is not None and not isinstance(found, str):
            return Correction(None, f"returned a {type(found).__name__}, expected a text or None")
        return Correction(found) if found is not None else Correction(None, "returned None")


class ByFile:
    """Corrections made elsewhere, found by the prompt and the whole completion."""

    def __init__(self, path: Path) -> None:
        self.name = f"revise file {path.name}"
        self._texts = {(row[0], row[1]): row[2] for row in read_file(path).iter_rows()}

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        return [self._of(item) for item in asked]

    def _of(self, item: RewardItem) -> Correction:
        text = self._texts.get((str(item.prompt.get("prompt_id")), item.completion))
        return Correction(text) if text is not None else Correction(None, "the file has no correction of it")


class Revised:
    """What an expert said before, from the table of it: for who wants to see what follows, and not ask again."""

    def __init__(self, revisions: pl.DataFrame, name: str) -> None:
        self.name = name
        own = revisions.filter(pl.col("role") == "own").select("group_id", "said", "note")
        self._said = {named(row[0]): Correction(row[1], row[2]) for row in own.iter_rows()}

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        return [self._said[f"{named(item.group_id)}/{item.sample_index}"] for item in asked]


def named(group: str) -> str:
    """A group's name without the artifact that it is in.

    >>> named("gsm8k@0412@5b1d90ae")
    'gsm8k@0412'
    """
    return group.rpartition("@")[0]


def read_file(path: Path) -> pl.DataFrame:
    """Rows of a file of corrections.

    Raises:
        UserError: no such file, of another kind, without one of the columns, or with two corrections of one completion.
    """
    read = READERS.get(path.suffix)
    if read is None:
        raise UserError(f"revise.file: {path}: expected a name that ends with {', '.join(READERS)}")
    try:
        frame = read(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"revise.file: {path}: cannot be read: {one_line(str(error))}") from None
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataError(
            f"revise.file: {path}: has no column {missing[0]}; expected {', '.join(COLUMNS)}, found {', '.join(frame.columns)}"
        )
    rows = frame.select(pl.col(name).cast(pl.String) for name in COLUMNS).with_row_index("row", 1).drop_nulls("revised")
    keys = ["prompt_id", "completion"]
    distinct = rows.unique(COLUMNS, keep="first", maintain_order=True)
    twice = distinct.filter(~pl.struct(keys).is_first_distinct())
    if len(twice):
        row, prompt = twice.row(0)[:2]
        raise DataError(
            f"revise.file: {path}, row {row}: a second correction of a completion of prompt {prompt}. Keep one of them"
        )
    return distinct.drop("row")


class ByServer:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, config: ReviseConfig) -> None:
        self.name = f"revise server {config.model}"
        body = {"model": config.model, "temperature": 0.0, "max_tokens": config.max_tokens, "seed": 0}
        key = key_of(config.api_key_env, "revise.")
        self._server = ChatServer(
            url=str(config.url), body=body, api="chat", key=key, timeout=config.timeout, retries=config.retries
        )
        self._config, self._threads = config, ThreadPoolExecutor(config.concurrency)
        self._server.look()

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        return list(self._threads.map(self._of, asked))

    def _of(self, item: RewardItem) -> Correction:
        try:
            answer = self._server.answer(filled(self._config.template, item), self._config.system)
        except NoAnswer as error:
            return Correction(None, one_line(str(error)))
        return Correction(as_the_own(answer, item.completion))


class ByModel:
    """A model that vLLM runs here, greedily. It is loaded when the first completion is asked about."""

    def __init__(
        self,
        config: ReviseConfig,
        reviser: Artifact,
        engine: EngineConfig,
        dtype: str,
        reporter: Reporter,
        *,
        trust_remote_code: bool,
    ) -> None:
        self.name = f"revise model {reviser.id[:12]}"
        self._config, self._reviser, self._engine, self._dtype, self._reporter = config, reviser, engine, dtype, reporter
        self._trusted = trust_remote_code
        self._live = LiveEngine()
        self._tokenizer: Any = load_tokenizer(reviser.path, trust_remote_code=trust_remote_code)
        self._chat = bool(self._tokenizer.chat_template)

    def revise(self, asked: Sequence[RewardItem]) -> list[Correction]:
        if not asked:
            return []
        texts = [filled(self._config.template, item) for item in asked]
        if self._chat:
            texts = chat_renderer(self._tokenizer, "{question}", self._config.system, {})(texts)
        prompts = encode(self._tokenizer, texts, special=not self._chat)
        sampling = SamplingConfig(temperature=0.0, max_tokens=self._config.max_tokens)
        asks = [CompletionRequest((0, number, 0), ids, sampling, 0) for number, ids in enumerate(prompts)]
        engine = self._live.engine_for(
            self._reviser,
            self._engine,
            self._dtype,
            [],
            self._reporter,
            trust_remote_code=self._trusted,
            mixed=None,
            cluster=None,
        )
        replies = {reply.key[1]: reply for some in engine.run(([ask] for ask in asks), len(asks)) for reply in some}
        return [self._said(replies[number], item) for number, item in enumerate(asked)]

    def rest(self) -> None:
        """Give back what the next stage needs."""
        self._live.rest()

    def _said(self, reply: Reply, item: RewardItem) -> Correction:
        if reply.error is not None:
            return Correction(None, one_line(reply.error))
        if reply.finish_reason != "stop":
            return Correction(None, f"cut after {len(reply.token_ids)} tokens; revise.max_tokens is {self._config.max_tokens}")
        return Correction(as_the_own(self._tokenizer.decode(reply.token_ids, skip_special_tokens=True), item.completion))


def as_the_own(answer: str, own: str) -> str:
    """A model's answer with the white space that the own completion begins and ends with.

    >>> as_the_own("A:7\\n", " A:8")
    ' A:7'
    """
    core = own.strip()
    head, _, tail = own.partition(core) if core else ("", "", "")
    return head + answer.strip() + tail


def check_revise(config: ReviseConfig) -> None:
    """Raise for what could not be asked, before anything is started.

    Raises:
        UserError: no such function or file, no regular expression, no address.
    """
    match config.by if config.is_on else None:
        case "pattern":
            compiled(str(config.pattern))
        case "function":
            try:
                own_function(str(config.function), A_REVISER)
            except UserError as error:
                raise UserError(f"revise.function: {error}") from None
        case "file":
            read_file(Path(str(config.file)))
        case "url":
            check_server(str(config.url), api_key_env=config.api_key_env, where="revise.")
