"""What a run's algorithm can train on: the sampling of the run, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.generate.engines import devices
from pipeline.prepare.check import check_algorithm, warnings_of

Config = Callable[..., RunConfig]
CUT, GREEDY = {"generate.top_p": 0.95}, {"generate.temperature": 0.0}


@pytest.mark.parametrize("sampling", [CUT, GREEDY], ids=["cut", "greedy"])
@pytest.mark.parametrize("name", ["reinforce", "dpo", "kto", "a*-po", "opa-dpo"])
def test_methods_without_a_ratio_take_any_sampling(make_config: Config, name: str, sampling: dict[str, float]) -> None:
    assert check_algorithm(make_config({"train.algorithm": name, **sampling})).name == name


@pytest.mark.parametrize("name", ["grpo", "oapl", "density-reinforce"])
def test_methods_with_a_ratio_need_the_whole_distribution(make_config: Config, name: str) -> None:
    with pytest.raises(UserError, match="needs the ratio pi/mu, and top_p, top_k or min_p cut"):
        check_algorithm(make_config({"train.algorithm": name, **CUT}))
    with pytest.raises(UserError, match="needs the ratio pi/mu, which greedy completions do not have"):
        check_algorithm(make_config({"train.algorithm": name, **GREEDY}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.algorithm": "grpo", "generate.samples": 1}, "compares a completion with the others of its group, and"),
        (
            {"train.algorithm": "dapo", "generate.samples": 1},
            "groups of generate.samples 1 are dropped whatever their rewards (not_mixed)",
        ),
        ({"train.algorithm": "dpo", "generate.samples": 1}, "are dropped whatever their rewards (unpaired)"),
        ({"generate.samples": 2, "shape.min_group": 3}, "shape.min_group is 3 and generate.samples 2: every group is too small"),
        ({"generate.samples": 4, "shape.pass_rate": [0.3, 0.4]}, "are dropped whatever their rewards (pass_rate)"),
        ({"generate.max_tokens": 64}, "generate.max_tokens is 64, and the model's context is 64 tokens"),
        ({"generate.max_tokens": 48, "engine.max_model_len": 32}, "engine.max_model_len is 32 tokens"),
        ({"engine.replicas": 3}, "3 engines of 1 GPUs each take 3, and 2 are visible here"),
    ],
    ids=str,
)
def test_settings_that_cannot_learn_are_said(
    make_config: Config, changes: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setattr(devices, "visible_gpus", lambda: ("0", "1"))
    config = make_config({"generate.max_tokens": 16, "train.epochs": 1, **changes})
    (warning,) = warnings_of(config, check_algorithm(config), 64)
    assert expected in warning


@pytest.mark.parametrize(
    "changes",
    [
        {"train.algorithm": "grpo", "generate.samples": 2},
        {"train.algorithm": "raft", "generate.samples": 1},
        {"train.algorithm": "dpo", "generate.samples": 2},
        {"generate.samples": 3, "shape.min_group": 3, "shape.pass_rate": [0.3, 0.4]},
        {"shape.solved_at": 5.0, "shape.pass_rate": [0.1, 0.9]},
    ],
    ids=str,
)
def test_settings_that_can_learn_are_passed_over(make_config: Config, changes: dict[str, object]) -> None:
    config = make_config({"generate.max_tokens": 16, "train.epochs": 1, **changes})
    assert list(warnings_of(config, check_algorithm(config), None)) == []
