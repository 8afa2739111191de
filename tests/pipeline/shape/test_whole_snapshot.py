"""Shaping that reads more than rewards of one group: the median of all groups (SPEAR), the density of completions."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.run.process import Reporter
from pipeline.shape.order import shape_request
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.store import load_artifact
from schemas import Rollouts, Shaped

MakeRollouts = Callable[..., Artifact]
FILES = {
    "part-00000.parquet": {"a": [("ok", 1.0), ("ok", 0.0)], "b": [("ok", 0.25), ("ok", 0.0), ("reward_error", None)]},
    "part-00001.parquet": {"c": [("ok", 1.0), ("ok", 1.0), ("truncated", 0.4)], "d": [("engine_error", None)]},
}
"""Means of the groups: a .5, b .125, c .8; none of d is kept. Their median is .5."""


@pytest.fixture
def run(store: Store, make_config: Callable[..., RunConfig]) -> Callable[..., pl.DataFrame]:
    """run(rollouts, algorithm, **args): the shaped rows."""

    def make(rollouts: Artifact, algorithm: str, **args: Any) -> pl.DataFrame:
        train = {"algorithm": algorithm, "algorithm_args": args}
        config = make_config({"train": train})
        request = shape_request(config, 0, rollouts).to_json()
        spec = {"store": str(store.root), "request": request, "rollouts": str(rollouts.path), **train}
        spec["shape"] = config.shape.model_dump(mode="json")
        return read_table(load_artifact(shape(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"]), Shaped)

    return make


Run = Callable[..., pl.DataFrame]


def test_spears_median_is_over_the_kept_groups_of_all_files(make_rollouts: MakeRollouts, run: Run) -> None:
    advantages = run(make_rollouts(FILES), "spear").filter("keep")["advantage"].to_list()
    # a: .5 + (1 - .5), -.5; b: .125, not above the median; c: .2 + (1 - .5) twice, -.4.
    assert advantages == pytest.approx([1.0, -0.5, 0.125, -0.125, 0.7, 0.7, -0.4])


def test_spear_without_imitation_has_the_groups_advantages(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    assert run(rollouts, "spear", step=0).equals(run(rollouts, "reinforce"))


@pytest.fixture
def with_logprobs(make_rollouts: MakeRollouts, store: Store) -> Callable[..., Artifact]:
    """with_logprobs({(group, sample): logprob per token}, **columns): the rollouts of FILES with these."""

    def make(logprobs: dict[tuple[str, int], float], **columns: Any) -> Artifact:
        plain = make_rollouts(FILES)
        with store.work(Request("rollouts", "generate/1", {"logprobs": str(logprobs), **columns})) as work:
            if not isinstance(work, Work):
                return work
            for path in plain.tables("rollouts"):
                rows = pl.read_parquet(path).to_dicts()
                for row in rows:
                    value = logprobs.get((row["group_id"], row["sample_index"]))
                    row["behavior_logprobs"] = None if value is None else [value] * len(row["completion_token_ids"])
                    row |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, **columns}
                types = {column: kind.dtype for column, kind in Rollouts.columns().items()}
                work.write_table(path.name, pl.DataFrame(rows, schema=types), Rollouts)
            return work.finish({"groups": 4})

    return make


DENSITIES = {
    ("a", 0): -1.0,
    ("a", 1): -2.0,
    ("b", 0): -1.0,
    ("b", 1): -1.0,
    ("b", 2): -1.0,
    **{("c", n): -3.0 + n for n in range(3)},
}


def test_weights_follow_from_the_stored_logprobs(with_logprobs: Callable[..., Artifact], run: Run) -> None:
    shaped = run(with_logprobs(DENSITIES), "density-reinforce", eta=0.5).filter("keep")
    # a: the median is -1.5; c: -2.
    assert shaped["weight"].to_list() == pytest.approx([1, 0.7788, 1, 1, 0.6065, 1, 1], abs=5e-5)
    assert shaped["advantage"].to_list() == pytest.approx([0.5, -0.5, 0.125, -0.125, 0.2, 0.2, -0.4])


@pytest.mark.parametrize(
    ("densities", "columns", "expected"),
    [
        ({**DENSITIES, ("b", 0): None}, {}, "density-reinforce needs behavior_logprobs, but 1 of 7 kept completions have none"),
        (DENSITIES, {"top_k": 5}, "drawn with top_p, top_k or min_p"),
        (DENSITIES, {"logprobs_mode": "unknown"}, "hold logprobs of an unknown mode"),
    ],
)
def test_density_without_logprobs_that_mean_it_is_refused_before_any_work(
    densities: dict[Any, Any], columns: dict[str, Any], expected: str, with_logprobs: Callable[..., Artifact], run: Run
) -> None:
    with pytest.raises(UserError) as error:
        run(with_logprobs(densities, **columns), "density-reinforce")
    assert expected in str(error.value)
