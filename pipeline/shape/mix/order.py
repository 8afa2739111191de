"""What is trained on beside an iteration's own rollouts: others, shaped, with the groups that are drawn for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Answerer, Job, Order, only
from pipeline.run.parts import Part
from pipeline.shape.mix.shares import groups_of_each, sources_of
from pipeline.shape.order import shape_order
from pipeline.store import Artifact, Request


def replayed(config: RunConfig, answers: Answerer, iteration: int, fresh: Part, earlier: Sequence[Artifact]) -> tuple[Part, ...]:
    """The parts that `replay` adds to a training.

    Args:
        earlier: rollouts of all earlier iterations, newest first.
    """
    title = f"replay {iteration}"
    sources = sources_of(config.replay, fresh.rollouts, earlier)
    if not sources:
        return ()
    wholes = [
        Part(source.rollouts, only(answers.answer(shape_order(config, iteration, source.rollouts, title)))) for source in sources
    ]
    there = [whole.shaped.summary["kept_groups"] for whole in wholes]
    weights = [source.weight for source in sources]
    counts = groups_of_each(config.replay, fresh.shaped.summary["kept_groups"], weights, there)
    parts = [(part, count) for part, count in zip(wholes, counts, strict=True) if count]
    drawn = {
        number: mix_request(config, iteration, part.rollouts, part.shaped, count)
        for number, (part, count) in enumerate(parts)
        if count < part.shaped.summary["kept_groups"] or config.replay.loss_weight != 1
    }
    made: Mapping[int, Artifact] = {}
    if drawn:
        jobs = [Job(request=request, told={"shaped": str(parts[n][0].shaped.path)}) for n, request in drawn.items()]
        order = Order(title=title, module="pipeline.shape.mix", jobs=tuple(jobs))
        made = dict(zip(drawn, answers.answer(order), strict=True))
    return tuple(Part(part.rollouts, made.get(number, part.shaped)) for number, (part, _) in enumerate(parts))


def mix_request(config: RunConfig, iteration: int, rollouts: Artifact, shaped: Artifact, groups: int) -> Request:
    """The shaped rows of replayed rollouts, less the groups that are not drawn for this iteration."""
    recipe = {"groups": groups, "loss_weight": config.replay.loss_weight, "iteration": iteration, "seed": config.seed}
    return Request("shaped", STAGES["mix"], recipe, (rollouts.as_parent("rollouts"), shaped.as_parent("shaped")))
