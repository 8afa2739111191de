"""Ask graders about right answers and about those that should earn nothing, on real rows; say which earn what they should not."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardConfig
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.probing.dresses import Dress, dresses_of
from pipeline.rewards.probing.kinds import EVERYTHING, NOTHING, AnswerKind, Offer, Setting, dressed
from pipeline.rewards.probing.replies import Replies, askable
from pipeline.rewards.probing.rows import ProbeRow, answer_in, row_of, spread

EARNS = 0.5
"""Share of what the right answer earns from which on an answer earns."""
FEW, MUCH = 0.02, 0.1
"""Shares of a kind's answers that earn and should not: up to the first it is well, above the second the probe fails."""
MOST = 0.95
"""Share of right answers that must earn for a way of writing them down to be taken."""
COUNTED = 5000
"""Prompts among whose answers the most frequent one is looked for."""
GUESSED = 0.2
"""Share of prompts for which one answer is right that is told: a policy learns it first."""
LEAST_ROWS = 5
"""Prompts that a text for all of them must be asked about."""
OK, FEW_EARN, EARN, IN_PART, NOT_TAKEN, ABSENT = "ok", "a few earn", "EARNS", "in part", "not taken", "not asked"
Earns = Literal["nothing", "everything"]


@dataclass(frozen=True, slots=True)
class Surprise:
    """An answer that earned what it should not, or did not earn what it should."""

    prompt_id: str
    answer: str
    """The right one."""
    text: str
    reward: float | None
    why: str | None
    """What graders said: an error, or where they found an answer."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What answers of one kind earned."""

    kind: str
    should_earn: Earns
    asked: int
    """Prompts."""
    earned: int
    """Prompts on which it earned at least half of what the right answer does."""
    share: float | None
    means: dict[str, float | None]
    """Mean score of each component, by its column; `reward` is their weighted sum."""
    failed: int
    """Answers that could not be graded."""
    verdict: str
    example: Surprise | None


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found."""

    rows: int
    """Prompts that were asked about."""
    components: list[str]
    skipped: dict[str, str]
    """Why components were not asked, by their column."""
    written: str
    """How answers are written down where that is not the question: the way that earns most."""
    unearned: int
    """Prompts whose right answer earns nothing, however it is written. They are left out of what follows."""
    tallies: list[Tally]
    problems: list[str]
    """What must not be, a line each."""
    notes: list[str]


def probe(
    config: RewardConfig,
    prompts: Sequence[Mapping[str, Any]],
    *,
    rows: int = 64,
    worked: Mapping[str, str] | None = None,
    written: Iterable[str] = (),
) -> Probed:
    """Ask the graders of a run.

    Args:
        prompts: rows of `schemas.Prompts`.
        rows: how many of them are asked about, evenly spread.
        worked: solutions that the answers were taken from, by the question.
        written: more ways to write an answer down, with {answer} in them.

    Raises:
        UserError: none of the graders can be asked, or one cannot be used; a way has no {answer} in it.
        StageFailed: a worker ends before it is ready.
    """
    asked, skipped = askable(config)
    if asked is None:
        raise UserError("reward: " + "; ".join(f"{column} is {why}" for column, why in skipped.items()))
    chosen = [row_of(prompt, worked) for prompt in spread(prompts, rows)]
    dresses = dresses_of(asked.components, written)
    ways = [dressed(dress) for dress in dresses]
    frequent, often = _most_frequent(prompts)
    with RewardPool(asked) as pool:
        replies = Replies(pool)
        bare = Setting(dresses[-1], (), {}, None)
        replies.ask((row, offer) for way in ways for row in chosen for offer in way.offers(row, bare))
        best = {row.name: _most(replies.of(row, o).reward for way in ways for o in way.offers(row, bare)) for row in chosen}
        setting = Setting(*_forms(dresses, ways, chosen, replies, bare), _others(chosen), frequent)
        offers = {
            kind.name: {row.name: list(dict.fromkeys(kind.offers(row, setting))) for row in chosen}
            for kind in (*NOTHING, *ways, *EVERYTHING)
        }
        replies.ask((row, offer) for made in offers.values() for row in chosen for offer in made[row.name])
    measure = Measure(chosen, best, replies)
    columns = [component.column for component in asked.components]
    tallies = [measure.tally(kind, "nothing", offers[kind.name], columns) for kind in NOTHING]
    tallies += [measure.tally(kind, "everything", offers[kind.name], columns) for kind in (*ways, *EVERYTHING)]
    notes = [f"the most frequent answer, {frequent!r}, is right for {often:.0%} of the prompts"] if often >= GUESSED else []
    unearned = [row for row in chosen if row.name not in measure.earning]
    problems = _problems(tallies, unearned, chosen, replies, ways, bare)
    return Probed(len(chosen), columns, skipped, setting.home.name, len(unearned), tallies, problems, notes)


class Measure:
    """What counts as earning on each row, and how often kinds of answers do.

    The right answer, in the way that earns most, sets what can be earned; the least that any answer got, or 0 if that is less,
    is what nothing earns. An answer earns from halfway between the two on.
    """

    def __init__(self, rows: Sequence[ProbeRow], best: Mapping[str, float | None], replies: Replies) -> None:
        self._replies = replies
        self.earning: dict[str, float] = {}
        """Reward from which on an answer earns, by the row's name; of rows whose right answer earns anything."""
        for row in rows:
            full, low = best[row.name], min([0.0, *replies.rewards(row)])
            if full is not None and full > low:
                self.earning[row.name] = low + EARNS * (full - low)
        self._rows = [row for row in rows if row.name in self.earning]

    def tally(self, kind: AnswerKind, should_earn: Earns, offers: Mapping[str, list[Offer]], columns: Sequence[str]) -> Tally:
        pairs = {row: offers[row.name] for row in self._rows if offers[row.name]}
        if kind.counts == "best":
            pairs = self._best_text(pairs)
        earned = [row for row, made in pairs.items() if self._counts(kind, row, made)]
        said = [self._replies.of(row, offer) for row, made in pairs.items() for offer in made]
        share = len(earned) / len(pairs) if pairs else None
        return Tally(
            kind=kind.name,
            should_earn=should_earn,
            asked=len(pairs),
            earned=len(earned),
            share=share,
            means={
                "reward": _mean(each.reward for each in said),
                **{column: _mean(each.components.get(column) for each in said) for column in columns},
            },
            failed=sum(each.error is not None for each in said),
            verdict=verdict(should_earn, share),
            example=self._surprise(should_earn, pairs, earned),
        )

    def _earns(self, row: ProbeRow, offer: Offer) -> bool:
        reward = self._replies.of(row, offer).reward
        return reward is not None and reward >= self.earning[row.name]

    def _counts(self, kind: AnswerKind, row: ProbeRow, offers: Sequence[Offer]) -> bool:
        return (all if kind.counts == "all" else any)(self._earns(row, offer) for offer in offers)

    def _best_text(self, pairs: Mapping[ProbeRow, list[Offer]]) -> dict[ProbeRow, list[Offer]]:
        """Of texts that many rows are asked about: the rows of the one that earns on the largest share of its rows."""
        by_text: dict[Offer, list[ProbeRow]] = {}
        for row, made in pairs.items():
            for offer in made:
                by_text.setdefault(offer, []).append(row)
        shares = {
            offer: sum(self._earns(row, offer) for row in rows) / len(rows)
            for offer, rows in by_text.items()
            if len(rows) >= min(LEAST_ROWS, len(self._rows))
        }
        if not shares:
            return {}
        best = max(shares, key=shares.__getitem__)
        return {row: [best] for row in by_text[best]}

    def _surprise(self, should_earn: Earns, pairs: Mapping[ProbeRow, list[Offer]], earned: Sequence[ProbeRow]) -> Surprise | None:
        """The first answer that earned and should not, or the other way round."""
        wanted = should_earn == "everything"
        rows = [row for row in pairs if row not in earned] if wanted else earned
        for row in rows[:1]:
            offer = next(offer for offer in pairs[row] if self._earns(row, offer) != wanted)
            said = self._replies.of(row, offer)
            why = said.error or "; ".join(said.remarks.values()) or None
            return Surprise(row.name, row.answer, offer.text, said.reward, why)
        return None


def verdict(should_earn: Earns, share: float | None) -> str:
    """What a share of answers that earn means.

    >>> verdict("nothing", 0.02), verdict("nothing", 0.1), verdict("nothing", 0.11), verdict("everything", 0.5)
    ('ok', 'a few earn', 'EARNS', 'in part')
    """
    if share is None:
        return ABSENT
    if should_earn == "nothing":
        return OK if share <= FEW else FEW_EARN if share <= MUCH else EARN
    return OK if share >= MOST else IN_PART if share > 0 else NOT_TAKEN


def _forms(
    dresses: Sequence[Dress], ways: Sequence[AnswerKind], rows: Sequence[ProbeRow], replies: Replies, bare: Setting
) -> tuple[Dress, tuple[Dress, ...]]:
    """The dress that earns most, the first of equals; and with it the plain one, if that earns on half of the rows."""
    rewards = {
        dress: [replies.of(row, offer).reward or 0.0 for row in rows for offer in way.offers(row, bare)]
        for dress, way in zip(dresses, ways, strict=True)
    }
    home = max(dresses, key=lambda dress: sum(rewards[dress]))
    plain = next(dress for dress in dresses if dress.is_plain)
    also = home != plain and sum(rewards[plain]) >= EARNS * sum(rewards[home]) > 0
    return home, (home, plain) if also else (home,)


def _others(rows: Sequence[ProbeRow]) -> dict[str, tuple[str, ...]]:
    """For each row, answers of those that follow it, other than its own."""
    found = {}
    for place, row in enumerate(rows):
        following = (other.answer for other in (*rows[place + 1 :], *rows[:place]))
        found[row.name] = tuple(dict.fromkeys(answer for answer in following if not row.is_right(answer)))[:4]
    return found


def _most_frequent(prompts: Sequence[Mapping[str, Any]]) -> tuple[str | None, float]:
    """The answer that most prompts have, if one is there twice, and its share."""
    counts = Counter(answer_in(str(prompt["answer"])) for prompt in prompts[:COUNTED])
    (text, often), *_ = counts.most_common(1) or [("", 0)]
    return (text, often / counts.total()) if often > 1 else (None, 0.0)


def _problems(
    tallies: Sequence[Tally],
    unearned: Sequence[ProbeRow],
    rows: Sequence[ProbeRow],
    replies: Replies,
    ways: Sequence[AnswerKind],
    bare: Setting,
) -> list[str]:
    found = []
    if len(unearned) > EARNS * len(rows):
        row = unearned[0]
        errors = [said.error for way in ways for o in way.offers(row, bare) if (said := replies.of(row, o)).error is not None]
        found.append(
            f"the right answer earns nothing on {len(unearned)} of {len(rows)} prompts, whether it is written "
            f"{', '.join(way.name for way in ways)}. The first is {row.name}, answer {row.answer[:80]!r}"
            + (f": {errors[0]}" if errors else "")
        )
    for tally in tallies:
        if tally.verdict == EARN:
            found.append(f"{tally.kind}: earns on {tally.earned} of {tally.asked} prompts, and should on none")
    return found


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
