"""What a run's algorithm can train on: the sampling of the run, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.prepare.check import check_algorithm

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
