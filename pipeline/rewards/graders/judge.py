"""judge: the score that a model behind an OpenAI-compatible server gives, such as vLLM's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.common.errors import UserError
from pipeline.common.lines import one_line
from pipeline.rewards.graders.chat import PROXIES, Api, ChatServer, NoAnswer, check_server, key_of
from pipeline.rewards.graders.from_file import refuse_mistyped
from pipeline.rewards.graders.template import check_template, filled
from pipeline.rewards.graders.text import compile_pattern, last_captured, number
from pipeline.rewards.items import RewardItem, Score

WORK = ("url", "api_key_env", "timeout", "retries", "concurrency")


def judge(
    *,
    url: str,
    model: str,
    template: str,
    pattern: str,
    values: Mapping[str, float] | None = None,
    divide_by: float = 1.0,
    system: str | None = None,
    api: Api = "chat",
    temperature: float = 0.0,
    seed: int | None = 0,
    max_tokens: int = 512,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
) -> Judge:
    """A score read from a model's answer. The answer is kept in the table `remarks`.

    Servers batch what they are asked, and their sums with it, so the same question can get another answer even at
    temperature 0: an audit does not ask again.

    Args:
        url: the server's, up to and with its version: http://localhost:8000/v1.
        model: its name on the server.
        template: what the model is asked; {prompt}, {question}, {completion} and {answer} are replaced.
        pattern: regular expression; what its last match in the answer captures is the score.
        values: numbers that captured words stand for: {correct: 1, wrong: 0}.
        divide_by: what the captured number is divided by; 10 for marks out of ten.
        system: system message, with api: chat.
        api: chat uses the model's chat template; completions gives it the bare text.
        temperature: 0 is greedy.
        seed: of the server's generator; null sends none.
        max_tokens: longest answer.
        api_key_env: name of the environment variable that holds the key. The key is written nowhere.
        timeout: seconds that one answer may take.
        retries: further attempts after what may pass: no connection, no answer in time, 429 and server errors.
        concurrency: questions asked at once.
    """
    body = {"model": model, "temperature": temperature, "max_tokens": max_tokens} | ({} if seed is None else {"seed": seed})
    server = ChatServer(url=url, body=body, api=api, key=key_of(api_key_env), timeout=timeout, retries=retries)
    return Judge(
        server,
        ask=lambda item: server.answer(filled(template, item), system),
        score=lambda answer: score_of(answer, pattern, values or {}, divide_by),
        concurrency=concurrency,
    )


class Judge:
    """See `judge`."""

    def __init__(
        self, server: ChatServer, *, ask: Callable[[RewardItem], str], score: Callable[[str], float], concurrency: int
    ) -> None:
        self._ask, self._score = ask, score
        self._threads = ThreadPoolExecutor(concurrency)
        self.seconds_per_item: float | None = server.longest_seconds
        self.notes: list[str] = []
        server.look()

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        return list(self._threads.map(self._grade, items))

    def _grade(self, item: RewardItem) -> Score:
        try:
            answer = self._ask(item)
        except NoAnswer as error:
            return Score(None, one_line(str(error)))
        try:
            return Score(self._score(answer), None, answer)
        except ValueError as error:
            return Score(None, one_line(f"{error}; the judge answered: {answer}"), answer)


def check(
    *,
    url: str,
    template: str,
    pattern: str,
    values: Mapping[str, float] | None = None,
    divide_by: float = 1.0,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
    **_: object,
) -> None:
    """Raise for what no server could be asked with. The server itself is looked at when grading starts."""
    check_server(url, api_key_env=api_key_env, timeout=timeout, retries=retries, concurrency=concurrency)
    check_template("template", template)
    compile_pattern("args.pattern", pattern)
    refuse_mistyped(None, values)
    if divide_by == 0:
        raise UserError("args.divide_by: 0, expected another number")


def environment(*, api_key_env: str | None = None, **_: object) -> tuple[str, ...]:
    """Variables that the judge's process is given."""
    return (*PROXIES, *([api_key_env] if api_key_env else []))


def score_of(answer: str, pattern: str, values: Mapping[str, float], divide_by: float) -> float:
    """The score in a judge's answer.

    Raises:
        ValueError: the answer holds none.
    """
    found = last_captured(pattern, answer)
    if found is None:
        raise ValueError(f"no match of {pattern!r}")
    if found.strip() in values:
        return float(values[found.strip()]) / divide_by
    spelled = number(found)
    if spelled is None:
        raise ValueError(f"{found[:80]!r} is no number" + (f" and none of {', '.join(values)}" if values else ""))
    return float(spelled) / divide_by
