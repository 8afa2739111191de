"""Rollouts as the generate stage writes them, with completions by hand: the same for every grader, as seeds make them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.engine import SamplingConfig
from pipeline.config.reward import RewardConfig
from pipeline.generate.engine import Reply
from pipeline.generate.shards import Group, RolloutsJob, remarks_name, shards_of
from pipeline.generate.summary import read_scalars, summarize
from pipeline.regrade.stage import grade
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import places_of, recipe_of
from pipeline.run.process import Reporter
from pipeline.store import Artifact, Request, Store, Work
from schemas import Prompts, Remarks, Rollouts

PROMPTS, SAMPLES, SHARD_GROUPS = 5, 3, 2
TOKENS = {(group, sample): [1 + (group + sample) % 4, 2] for group in range(PROMPTS) for sample in range(SAMPLES)}
"""Completions are ab, bb, cb and db; those of prompt 4 and sample 2 failed in the engine, those of sample 1 were cut."""


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join("_abcd"[token] for token in token_ids)


@pytest.fixture
def prompts(store: Store) -> Artifact:
    rows = [
        {"prompt_id": f"p{n}", "question": f"q{n}", "answer": "ab", "prompt_text": f"q{n}=", "metadata": f'{{"level": {n}}}'}
        for n in range(PROMPTS)
    ]
    with store.work(Request("prompts", "prompts/1", {"chat": False})) as work:
        assert isinstance(work, Work)
        work.write_table("prompts.parquet", pl.DataFrame(rows), Prompts)
        return work.finish({"prompts": PROMPTS})


@pytest.fixture
def wanted(make_artifact: Callable[..., Artifact], prompts: Artifact) -> Callable[..., Request]:
    """wanted(reward): what a run asks for."""
    policy = make_artifact("checkpoint")

    def request(reward: RewardConfig, **recipe: Any) -> Request:
        fixed = {"purpose": "train", "samples": SAMPLES, "shard_groups": SHARD_GROUPS, **recipe}
        components = [recipe_of(component) for component in reward.components]
        parents = (policy.as_parent("policy"), prompts.as_parent("prompts"))
        return Request("rollouts", "generate/1", {**fixed, "reward": components}, parents)

    return request


@pytest.fixture
def generate(store: Store, wanted: Callable[..., Request], prompts: Artifact) -> Callable[..., Artifact]:
    """generate(reward, store): the artifact that generation makes, shard by shard through its own code."""

    def make(reward: RewardConfig, into: Store = store) -> Artifact:
        request, rows = wanted(reward), pl.read_parquet(prompts.path / "prompts.parquet").to_dicts()
        fields = {"samples": SAMPLES, "sampling": SamplingConfig(), "purpose": "train", "iteration": 0, "run_seed": 7}
        groups = [Group(row, [5, n], row["prompt_id"]) for n, row in enumerate(rows)]
        job = RolloutsJob(number=0, key=request.key, groups=groups, policy_id="policy", policy_version=0, **fields)
        with into.work(request) as work, RewardPool(reward) as pool:
            assert isinstance(work, Work)
            for shard in shards_of(job, SHARD_GROUPS):
                shard.engine = "by hand"
                for number in reversed(range(shard.start, shard.stop)):
                    for sample in range(SAMPLES):
                        shard.add(_reply(number, sample), Letters(), pool)
                if len(remarks := shard.remarks()):
                    work.write_table(remarks_name(shard.name), remarks, Remarks)
                work.write_table(shard.name, shard.frame(reward), Rollouts)
            scalars = read_scalars(sorted(work.path.glob("part-*.parquet")))
            return work.finish(summarize(scalars), notes=places_of(reward.components))

    return make


def _reply(group: int, sample: int) -> Reply:
    tokens = TOKENS[group, sample]
    failed = "the engine ended it with 'abort'" if (group, sample) == (4, 2) else None
    logprobs = [] if failed else [-0.5] * len(tokens)
    return Reply((0, group, sample), tokens, logprobs, "length" if sample == 1 else "stop", None, failed)


class Grading:
    """Runs the stage in this process and keeps what it reports."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __call__(self, store: Store, reward: RewardConfig, *jobs: dict[str, Any]) -> list[Artifact]:
        from pipeline.store.store import load_artifact

        reporter = Reporter(os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        spec = {"store": str(store.root), "reward": reward.model_dump(mode="json"), "jobs": list(jobs)}
        return [load_artifact(path) for path in grade(spec, reporter)["artifacts"]]

    @property
    def events(self) -> str:
        return self._place.read_text(encoding="utf-8")


@pytest.fixture
def grading(tmp_path: Path) -> Grading:
    return Grading(tmp_path / "events.jsonl")


@pytest.fixture
def stored(generate: Callable[..., Artifact]) -> Artifact:
    """Five groups of sums, graded."""
    return generate(RewardConfig.model_validate({"components": [{"grader": "exact_match"}]}))
