"""pairwise_judge: which of two completions a model behind a server prefers, asked in both orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.lines import one_line
from pipeline.rewards.graders.chat import Api, ChatServer, NoAnswer, check_server, key_of
from pipeline.rewards.graders.from_file import refuse_mistyped
from pipeline.rewards.graders.judge import WORK as WORK
from pipeline.rewards.graders.judge import environment as environment
from pipeline.rewards.graders.judge import score_of
from pipeline.rewards.graders.template import filled_with_two
from pipeline.rewards.graders.text import compile_pattern
from pipeline.rewards.items import RewardItem, Score

Scale = Literal["win_rate", "log_odds"]
SHOWN = 160
"""Characters of a judge's answer in the remark of a comparison."""


def pairwise_judge(
    *,
    url: str,
    model: str,
    template: str,
    pattern: str,
    values: Mapping[str, float],
    opponents: int = 1,
    scale: Scale = "win_rate",
    system: str | None = None,
    api: Api = "chat",
    temperature: float = 0.0,
    seed: int | None = 0,
    max_tokens: int = 512,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
) -> PairwiseJudge:
    """How often a completion is preferred to others of its group. Every pair is shown in both orders and counts as the mean.

    A judge that prefers a place, whichever completion stands there, contradicts itself: such a pair counts 1/2, and the table
    `remarks` names it. Completions of equal texts are as good as each other, and nobody is asked. One that is alone in its group
    has the middle of the scale.

    Args:
        url: the server's, up to and with its version: http://localhost:8000/v1.
        model: its name on the server.
        template: what the model is asked; {prompt}, {question}, {answer}, and the completions {first} and {second} are replaced.
        pattern: regular expression; what its last match in the answer captures is the verdict.
        values: how sure each verdict is of the first: {A: 1, B: 0, C: 0.5}.
        opponents: how many others each completion is compared with, those behind it in its group (and so with as many before
            it). One makes as many pairs as there are completions; half of a group's size makes all pairs.
        scale: win_rate is the mean over a completion's pairs, from 0 to 1. log_odds are scores whose differences fit the pairs'
            log odds best (least squares; a pair counts half a vote more for each side, so that they are finite). In a group of
            two, sigmoid(r - r') is then the pair's preference.
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
    server.look()

    def prefers(first: RewardItem, second: RewardItem) -> OneOrder:
        """Of one order."""
        try:
            answer = server.answer(filled_with_two(template, first, second), system)
        except NoAnswer as error:
            return OneOrder(None, one_line(str(error)))
        try:
            return OneOrder(score_of(answer, pattern, values, 1.0), answer)
        except ValueError as error:
            return OneOrder(None, one_line(f"{error}; the judge answered: {answer}"))

    return PairwiseJudge(prefers, opponents, scale, concurrency, server.longest_seconds)


@dataclass(frozen=True, slots=True)
class OneOrder:
    """What was said of two completions in one order."""

    first: float | None
    """How sure it is that the first is better; None if nobody knows."""
    said: str
    """The answer, or why there is none."""


@dataclass(frozen=True, slots=True)
class BothOrders:
    """Two completions of a batch, by their places, and what was said of them in both orders."""

    one: int
    other: int
    forth: OneOrder
    back: OneOrder

    @property
    def preference(self) -> float | None:
        """That `one` is better, the mean of both orders; None if one of them has no verdict."""
        if self.forth.first is None or self.back.first is None:
            return None
        return (self.forth.first + 1 - self.back.first) / 2

    @property
    def place(self) -> str | None:
        """The place that is preferred in both orders: the judge contradicts itself. None if it does not."""
        sides = [verdict.first for verdict in (self.forth, self.back) if verdict.first is not None]
        if len(sides) == 2 and min(sides) > 0.5:
            return "first"
        return "second" if len(sides) == 2 and max(sides) < 0.5 else None


Prefers = Callable[[RewardItem, RewardItem], OneOrder]


class PairwiseJudge:
    """See `pairwise_judge`."""

    def __init__(self, prefers: Prefers, opponents: int, scale: Scale, concurrency: int, seconds: float) -> None:
        self._prefers, self._opponents, self._scale = prefers, opponents, scale
        self._threads = ThreadPoolExecutor(concurrency)
        self.seconds_per_item: float | None = 2 * opponents * seconds
        self.notes: list[str] = []

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        found = self._compared(items, list(self._pairs(items)))
        given = {place: score for group in _groups(items) for place, score in self._scored(items, group, found)}
        return [given[place] for place in range(len(items))]

    def _pairs(self, items: Sequence[RewardItem]) -> Iterator[tuple[int, int]]:
        """Places of completions that are compared: each with those behind it in its group, the first ones behind the last."""
        for group in _groups(items):
            size, seen = len(group), set[frozenset[int]]()
            for place in range(size):
                for step in range(1, min(self._opponents, size - 1) + 1):
                    pair = group[place], group[(place + step) % size]
                    if (key := frozenset(pair)) not in seen:
                        seen.add(key)
                        yield pair

    def _compared(self, items: Sequence[RewardItem], pairs: Sequence[tuple[int, int]]) -> list[BothOrders]:
        asked = [(items[one], items[other]) for pair in pairs for one, other in (pair, pair[::-1])]
        verdicts = list(self._threads.map(self._verdict, asked))
        return [BothOrders(*pair, *verdicts[2 * number : 2 * number + 2]) for number, pair in enumerate(pairs)]

    def _verdict(self, asked: tuple[RewardItem, RewardItem]) -> OneOrder:
        first, second = asked
        if first.completion == second.completion:
            return OneOrder(0.5, "the same text")
        return self._prefers(first, second)

    def _scored(
        self, items: Sequence[RewardItem], group: Sequence[int], found: Sequence[BothOrders]
    ) -> Iterator[tuple[int, Score]]:
        """Places of a group and their scores. One that a comparison of failed has none."""
        own = {place: [one for one in found if place in (one.one, one.other)] for place in group}
        known = [one for one in found if one.one in own and one.preference is not None]
        worth = dict(zip(group, scores(group, known, self._scale), strict=True))
        for place in group:
            failed = next((v for one in own[place] for v in (one.forth, one.back) if v.first is None), None)
            remark = "\n".join(_told(one, place, items) for one in own[place]) or None
            yield place, Score(None, failed.said, remark) if failed else Score(worth[place], None, remark)


def scores(group: Sequence[int], found: Sequence[BothOrders], scale: Scale) -> list[float]:
    """What preferences make of the completions of a group, in its order.

    >>> pair = BothOrders(0, 1, OneOrder(1.0, ""), OneOrder(0.0, ""))
    >>> scores([0, 1], [pair], "win_rate")
    [1.0, 0.0]
    >>> first, second = scores([0, 1], [pair], "log_odds")
    >>> round(1 / (1 + float(np.exp(second - first))), 4)  # 2.5 of 3 votes
    0.8333
    """
    if scale == "win_rate":
        wins: dict[int, list[float]] = {place: [] for place in group}
        for one in found:
            assert one.preference is not None
            wins[one.one].append(one.preference)
            wins[one.other].append(1 - one.preference)
        return [sum(each) / len(each) if each else 0.5 for each in wins.values()]
    at = {place: number for number, place in enumerate(group)}
    differences, odds = np.zeros((len(found), len(group))), np.zeros(len(found))
    for number, one in enumerate(found):
        assert one.preference is not None
        differences[number, [at[one.one], at[one.other]]] = 1, -1
        smoothed = (2 * one.preference + 0.5) / 3
        odds[number] = np.log(smoothed / (1 - smoothed))
    return [float(each) for each in np.linalg.lstsq(differences, odds, rcond=None)[0]] if found else [0.0] * len(group)


def _groups(items: Sequence[RewardItem]) -> list[list[int]]:
    """Places of the completions of each group."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault((item.group_id, str(item.prompt.get("prompt_id"))), []).append(place)
    return list(groups.values())


def _told(one: BothOrders, place: int, items: Sequence[RewardItem]) -> str:
    """A comparison as the completion's remark has it."""
    is_one = place == one.one
    against = items[one.other if is_one else one.one].sample_index
    mine = one.preference if is_one or one.preference is None else 1 - one.preference
    found = "no verdict" if mine is None else f"{mine:g}"
    contradiction = f", contradicts itself: the {one.place} in both orders" if one.place else ""
    answers = " | ".join(one_line(verdict.said)[:SHOWN] for verdict in (one.forth, one.back))
    return f"against {against}: {found}{contradiction} ({answers})"


def check(
    *,
    url: str,
    template: str,
    pattern: str,
    values: Mapping[str, float],
    opponents: int = 1,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
    **_: object,
) -> None:
    """Raise for what no server could be asked with, and for verdicts that cannot tell two completions apart."""
    check_server(url, api_key_env=api_key_env, timeout=timeout, retries=retries, concurrency=concurrency)
    for field in ("{first}", "{second}"):
        if field not in template:
            raise UserError(f"args.template: has no {field} in it; the judge compares {{first}} with {{second}}")
    compile_pattern("args.pattern", pattern)
    refuse_mistyped(None, values)
    if opponents < 1:
        raise UserError(f"args.opponents: {opponents}, expected at least 1")
    for word, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(
                f"args.values: {word!r} stands for {value:g}, expected how sure it is of the first completion, from 0 to 1"
            )
    for side, words in (
        ("first", [w for w, v in values.items() if v > 0.5]),
        ("second", [w for w, v in values.items() if v < 0.5]),
    ):
        if not words:
            raise UserError(
                f"args.values: no verdict prefers the {side} completion, so that the judge, which is asked in both orders, "
                "contradicts itself in every pair. Give the verdicts of both sides values, such as {A: 1, B: 0}"
            )
