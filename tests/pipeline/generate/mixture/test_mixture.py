"""Which model completions are drawn by beside the policy, what a run asks for then, and the mixture's logits by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.config.course import Course
from pipeline.config.load import change_config
from pipeline.config.run import RunConfig
from pipeline.generate.mixture.folder import MixedWith, mixture_folder
from pipeline.generate.mixture.logits import mixed_logits
from pipeline.generate.mixture.order import other_of
from pipeline.generate.order import generate_orders, rollouts_request
from pipeline.prepare.others import mixture_files
from pipeline.run.order import Order
from pipeline.sources.models import model_files
from pipeline.store import Artifact

Config = Callable[..., RunConfig]
Make = Callable[..., Artifact]
MIXED = {"generate.mixture": {"with": "reference", "share": 0.125}}


class Nobody:
    """Answers nothing: the other model is a checkpoint of the run."""

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        raise AssertionError(order.title)


def test_a_mixture_of_three_tokens_with_a_uniform_model() -> None:
    policy, uniform = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.zeros(1, 3)
    assert mixed_logits(policy, uniform, 0.5).softmax(-1)[0].tolist() == pytest.approx([0.4727, 0.3343, 0.1930], abs=5e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0.8, 0.2]), (1.0, [0.5, 0.5]), (-1.0, [16 / 17, 1 / 17])])
def test_the_ends_are_the_two_models_and_below_zero_leads_away_from_the_other(share: float, expected: list[float]) -> None:
    """pi^2 / other of (.8, .2) and (.5, .5) is (1.28, .08), which is (16/17, 1/17). Logits may lie anywhere: 3 is added."""
    policy, other = torch.tensor([[0.8, 0.2]]).log() + 3, torch.zeros(1, 2)
    assert mixed_logits(policy, other, share).softmax(-1)[0].tolist() == pytest.approx(expected)


def test_the_other_model_is_the_iterations_reference_or_what_drew_the_data(make_config: Config, make_artifact: Make) -> None:
    policies = [make_artifact("checkpoint", number=number) for number in range(4)]

    def others(changes: dict[str, Any]) -> list[int | None]:
        course = Course(make_config({"iterations": 4, **changes}))
        found = [other_of(course.at(number), Nobody(), policies[: number + 1]) for number in range(4)]
        return [policies.index(other) if other else None for other in found]

    assert others({}) == [None] * 4
    assert others(MIXED) == [None, 0, 0, 0]  # in iteration 0 the reference is the policy
    assert others({**MIXED, "reference": {"every": 2}}) == [None, 0, None, 2]
    assert others({"generate.mixture": {"with": "behavior", "share": -0.1}}) == [None, 0, 1, 2]
    fading = {"iterations": "2-", "generate": {"mixture": {"with": "reference", "share": 0}}}
    assert others({**MIXED, "phases": [{"iterations": "0-1"}, fading]}) == [None, 0, None, None]


def test_a_mixture_answers_the_training_prompts_and_the_policy_those_held_out(make_config: Config, make_artifact: Make) -> None:
    policy, other, prompts = make_artifact("checkpoint", n=1), make_artifact("checkpoint", n=2), make_artifact("prompts")
    config = make_config(MIXED)
    heldout, train = generate_orders(config, 1, policy, prompts, prompts, config, other)
    assert [job.request.recipe["purpose"] for order in (heldout, train) for job in order.jobs] == ["sampled", "greedy", "train"]
    assert train.told["mixture"] == {"other": str(other.path), "share": 0.125} and "mixture" not in heldout.told
    (request,) = (job.request for job in train.jobs)
    assert request.recipe["mixture"] == {"share": 0.125}
    assert [(parent.role, parent.id) for parent in request.parents][-1] == ("other", other.id)


def test_without_another_model_rollouts_have_the_key_that_they_always_had(make_config: Config, make_artifact: Make) -> None:
    policy, prompts = make_artifact("checkpoint"), make_artifact("prompts")
    plain, mixed = (rollouts_request(make_config(changes), 1, policy, prompts) for changes in ({}, MIXED))
    assert plain.key == mixed.key != rollouts_request(make_config(MIXED), 1, policy, prompts, policy).key


def test_what_vllm_loads_is_the_policy_under_another_architecture(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(
        '{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 8}', encoding="utf-8"
    )
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"weights")
    folder = mixture_folder(tmp_path / "policy", MixedWith(str(tmp_path / "other"), 0.25), tmp_path / "folder")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    parts = {"architectures": ["Qwen2ForCausalLM"], "other": str(tmp_path / "other"), "share": 0.25}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config == {"architectures": ["RollbookMixture"], "hidden_size": 8, "rollbook_mixture": parts}


@pytest.mark.parametrize("share", [-1.5, 1.01])
def test_a_share_beyond_the_bounds_is_refused(make_config: Config, share: float) -> None:
    with pytest.raises(UserError, match=r"generate\.mixture\.share: Input should be"):
        change_config(make_config(), [f"generate.mixture={{with: reference, share: {share}}}"])


def test_the_other_model_must_be_named(make_config: Config) -> None:
    with pytest.raises(UserError, match=r"generate\.mixture\.with: missing"):
        change_config(make_config(), ["generate.mixture={share: 0.5}"])


def test_servers_hold_one_model(make_config: Config) -> None:
    with pytest.raises(UserError, match=r"generate\.mixture: needs engines of the run's own"):
        change_config(make_config(MIXED), ["engine.server=http://127.0.0.1:8000"])


def test_a_model_of_other_tokens_or_another_vocabulary_is_refused(
    make_config: Config, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    sized = b'{"architectures": ["Qwen2ForCausalLM"], "vocab_size": %d}'
    files = model_files(write_model(tmp_path / "ours", **{"config.json": sized % 8}), trust_remote_code=False)
    longer = write_model(tmp_path / "longer", **{"config.json": sized % 9})
    others = shutil.copytree(tmp_path / "ours", tmp_path / "others")
    spelled = (others / "tokenizer.json").read_text(encoding="utf-8").replace('"a": 0', '"b": 0')
    (others / "tokenizer.json").write_text(spelled.replace('"unk_token": "a"', '"unk_token": "b"'), encoding="utf-8")

    def check(place: Path, share: float = 0.1) -> None:
        mixture_files(make_config({"generate.mixture": {"with": str(place), "share": share}}), files)

    check(tmp_path / "ours")
    with pytest.raises(UserError, match=r"generate\.mixture\.with: .*longer: its vocabulary has 9 entries, and that of .* 8"):
        check(longer)
    with pytest.raises(UserError, match=r"generate\.mixture\.with: .*others: its tokens are not those of this run's model"):
        check(others)
    with pytest.raises(UserError, match=r"generate\.mixture\.with: .*nowhere"):
        check(tmp_path / "nowhere")
    check(longer, share=0.0)  # not mixed at all
