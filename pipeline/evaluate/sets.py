"""Checkpoints judged by more prompts than `data.heldout`: each set as a run with settings of its own would judge them."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.heldout import by_set
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_order
from pipeline.generate.order import generate_order
from pipeline.run.order import Answerer, only
from pipeline.run.state import Judgment, answers_of
from pipeline.sources.order import HELDOUT_PROMPTS, heldout_prompts_order
from pipeline.store import Artifact


def set_prompts(config: RunConfig, answers: Answerer, base: Artifact, train: Artifact) -> dict[str, Artifact]:
    """The prompts of every set of `evaluate.sets`, by its name."""
    orders = {one.name: heldout_prompts_order(here, base, train, f"{HELDOUT_PROMPTS} {one.name}") for one, here in by_set(config)}
    return {name: only(answers.answer(order)) for name, order in orders.items()}


def judged(
    config: RunConfig, answers: Answerer, iteration: int, policy: Artifact, prompts: Mapping[str, Artifact]
) -> dict[str, Judgment]:
    """How a checkpoint does on the sets that are due, by their names."""
    found = {}
    for one, here in by_set(config):
        if one.is_due(iteration, config.iterations):
            suffix = f" {one.name}"
            made = answers.answer(generate_order(here, iteration, policy, None, prompts[one.name], suffix=suffix))
            answered = answers_of(made, greedy=here.evaluate.greedy)
            found[one.name] = Judgment(answered, only(answers.answer(evaluate_order(here, iteration, policy, answered, suffix))))
    return found
