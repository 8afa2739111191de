"""Hygiene: whether data are good to learn from and to be judged by. Every figure is shown; one beyond its limit is a finding.

Limits are rules of thumb. They say where to look, not what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from pipeline.look.audit.findings import Figure, Severity
from pipeline.look.audit.holdings import Held, Shelf
from pipeline.look.audit.world import World
from schemas.rollouts import FAILED

DEAD_RANGE = 1e-8
"""Rewards of a group that differ by less count as equal, as they do in shaping."""


def question_keys() -> dict[str, pl.Expr]:
    """Hashes of a prompts table's questions: as they are, and without what does not make another question of them."""
    question = pl.col("question")
    plain = question.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars(" .?!")
    return {"exact": question.hash(), "normalized": plain.hash()}


def prompts_figures(held: Held, rows: pl.DataFrame) -> Iterator[Figure]:
    """Of a prompts artifact, from the facts that `question_keys` selects."""
    remedy = "Remove the repeated questions: a question that is there twice counts twice."
    for name, words in (("exact", "questions that repeat another"), ("normalized", "questions that repeat, normalized text")):
        share = 1 - rows[name].n_unique() / max(len(rows), 1)
        yield _figure(held, f"share of {words}", share, most=0.0, remedy=remedy)


def rollouts_figures(held: Held, rows: pl.DataFrame) -> Iterator[Figure]:
    """Of a rollouts artifact, from its checks' facts."""
    if rows.is_empty():
        return
    groups = (
        rows.drop_nulls("reward").group_by("group_id").agg(spread=pl.col("reward").max() - pl.col("reward").min(), n=pl.len())
    )
    several = groups.filter(pl.col("n") > 1)
    if len(several):
        remedy = "Such groups teach nothing to methods with a group baseline: choose harder or easier prompts."
        share = int((several["spread"] < DEAD_RANGE).sum()) / len(several)
        yield _figure(held, "share of groups whose rewards are all equal", share, most=0.9, remedy=remedy)
    cut = int((rows["status"] == "truncated").sum()) / len(rows)
    yield _figure(held, "share of completions cut at max_tokens", cut, most=0.2, remedy="Raise generate.max_tokens.")
    failed = int(rows["status"].is_in(FAILED).sum()) / len(rows)
    yield _figure(held, "share of completions that failed", failed, most=0.05, remedy="The rows' error column says why.")
    read = rows.filter("whole")
    if len(read):
        copies = read.group_by("group_id").agg(n=pl.len(), distinct=pl.col("text").n_unique())
        share = 1 - int(copies["distinct"].sum()) / int(copies["n"].sum())
        remedy = "Greedy or low-temperature sampling, or a policy that has collapsed: look at the entropy."
        yield _figure(held, "share of completions that repeat one of their group", share, most=0.9, remedy=remedy)
        both = read.drop_nulls("reward")
        value = both.select(pl.corr("reward", "tokens")).item() if len(both) > 1 else None
        value = None if value is None or value != value else float(value)
        remedy = "Length may be what is rewarded: compare completions of equal length before believing a gain."
        beyond = value is not None and abs(value) > 0.7
        yield Figure(
            artifact=held.name,
            name="correlation of reward and length",
            value=value,
            limit="-0.7 to 0.7",
            beyond=beyond,
            remedy=remedy,
        )


def training_figures(held: Held, rows: pl.DataFrame) -> Iterator[Figure]:
    """Of a trained checkpoint, from its metrics: how far the policy has left the data in the last epoch."""
    last = rows.filter(pl.col("epoch") == pl.col("epoch").max())
    remedy = "A few completions decide the step: fewer epochs, a lower learning rate, or a trust region."
    least = {"ess": ("effective sample size, mean of the last epoch", 0.1), "ratio_q01": ("1 % quantile of the ratio", 0.1)}
    for column, (name, limit) in least.items():
        yield _figure(held, name, _mean(last, column), least=limit, remedy=remedy)
    yield _figure(held, "99 % quantile of the ratio", _mean(last, "ratio_q99"), most=10.0, remedy=remedy)
    remedy = "The policy has nearly stopped exploring: the next iteration has little to learn from."
    yield _figure(held, "entropy, nats per token", _mean(last, "entropy"), least=0.01, remedy=remedy)


def overlap_figures(questions: Mapping[str, pl.DataFrame], world: World) -> Iterator[tuple[Figure, int]]:
    """Questions that a policy was judged by and may have been trained on. With each figure, the first such row.

    Args:
        questions: facts of every prompts artifact, by its name.
    """
    held = {one.name: one for one in world.shelf.all}
    for judged, trained in sorted(_judged_and_trained(world.shelf)):
        if judged not in questions or trained not in questions:
            continue
        for name, words in (("exact", "questions"), ("normalized", "normalized questions")):
            shared = questions[judged].filter(pl.col(name).is_in(questions[trained][name].implode()))
            share = len(shared) / max(len(questions[judged]), 1)
            remedy = "Remove them from one of the two: accuracy on them shows memory, not skill."
            figure = _figure(
                held[judged], f"share of {words} that are also in {trained}", share, most=0.0, remedy=remedy, severity="warning"
            )
            yield figure, int(shared["row"][0]) if len(shared) else 0


def _judged_and_trained(shelf: Shelf) -> set[tuple[str, str]]:
    """Pairs of prompts artifacts: one that a policy was judged by, one that it or an ancestor was trained on."""
    pairs = set()
    for evaluation in shelf.all:
        if evaluation.kind != "evaluation":
            continue
        answers = [shelf.parent(evaluation, role) for role in ("sampled", "greedy")]
        judged = {prompts.name for one in answers if one and (prompts := shelf.parent(one, "prompts"))}
        policy = shelf.parent(evaluation, "policy")
        for ancestor in shelf.ancestors([policy] if policy else []):
            prompts = shelf.parent(ancestor, "prompts") if ancestor.kind == "rollouts" else None
            if prompts is not None:
                pairs |= {(name, prompts.name) for name in judged}
    return pairs


def _figure(
    held: Held,
    name: str,
    value: float | None,
    *,
    most: float | None = None,
    least: float | None = None,
    remedy: str,
    severity: Severity = "note",
) -> Figure:
    beyond = value is not None and ((most is not None and value > most) or (least is not None and value < least))
    limit = f"at most {most:g}" if most is not None else f"at least {least:g}" if least is not None else ""
    return Figure(artifact=held.name, name=name, value=value, limit=limit, beyond=beyond, severity=severity, remedy=remedy)


def _mean(rows: pl.DataFrame, column: str) -> float | None:
    value = rows[column].mean()
    return float(value) if isinstance(value, int | float) else None
