"""Keys: a stage is done again exactly when a setting that decides its result has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config.data import PromptSource
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_request
from pipeline.generate.order import heldout_request, rollouts_request
from pipeline.run.parts import Part
from pipeline.shape.mix.order import mix_request
from pipeline.shape.order import shape_request
from pipeline.sources.order import prompts_request
from pipeline.store import Artifact
from pipeline.train.order import train_request

Config = Callable[..., RunConfig]
Keys = Callable[[RunConfig], dict[str, str]]


@pytest.fixture
def keys(make_artifact: Callable[..., Artifact]) -> Keys:
    """The key of every stage of the first iteration, on parents that stay the same."""
    policy, prompts = make_artifact("checkpoint"), make_artifact("prompts")
    rollouts, shaped = make_artifact("rollouts"), make_artifact("shaped")

    def of(config: RunConfig) -> dict[str, str]:
        source = config.data.train
        found = {
            "prompts": prompts_request(config, source, "c0ffee", model=None, disjoint_from=None),
            "rollouts": rollouts_request(config, 0, policy, prompts),
            "sampled": heldout_request(config, policy, prompts, greedy=False),
            "greedy": heldout_request(config, policy, prompts, greedy=True),
            "shaped": shape_request(config, 0, rollouts),
            "train": train_request(config, 0, policy, [Part(rollouts, shaped)]),
            "evaluation": evaluate_request(config, policy, rollouts, None),
        }
        return {stage: request.key for stage, request in found.items()}

    return of


GENERATED = {"rollouts", "sampled", "greedy"}


@pytest.mark.parametrize(
    ("changes", "affected"),
    [
        ({"name": "other", "run_dir": "elsewhere", "store": "shared"}, set()),
        ({"iterations": 9}, set()),
        ({"model.path": "elsewhere", "model.revision": "main"}, set()),
        ({"data.train.path": "elsewhere.jsonl"}, set()),
        ({"engine": {"max_num_seqs": 3, "gpu_memory_utilization": 0.5, "kv_cache_mib": 64}}, set()),
        ({"reward.workers": 7, "reward.timeout_seconds": 1, "reward.memory_mib": 512, "reward.max_failed_share": 1}, set()),
        ({"train.save_every_steps": 3}, set()),
        ({"train.max_logprob_difference": 0.06}, set()),
        ({"train.check_logprobs": False}, {"train"}),
        ({"seed": 1}, {*GENERATED, "train", "evaluation"}),
        ({"model.dtype": "bfloat16"}, {*GENERATED, "train"}),
        ({"data.template": "Q: {question}"}, {"prompts"}),
        ({"data.train.limit": 3}, {"prompts"}),
        ({"data.train.answer_pattern": "x(.*)"}, {"prompts"}),
        ({"engine.max_model_len": 64}, GENERATED),
        ({"engine.args": {"kv_cache_dtype": "fp8"}}, GENERATED),
        ({"engine.args": {"max_num_batched_tokens": 8192, "block_size": 32}}, set()),
        ({"engine.replicas": 3}, set()),
        ({"generate.temperature": 0.5}, {"rollouts"}),
        ({"generate.top_p": 0.5}, {"rollouts"}),
        ({"generate.prompts": 3}, {"rollouts"}),
        ({"generate.samples": 3}, {"rollouts"}),
        ({"generate.max_tokens": 3}, GENERATED),
        ({"generate.stop": ["\n"]}, GENERATED),
        ({"generate.shard_groups": 3}, GENERATED),
        ({"reward.components": [{"grader": "exact_match", "weight": 2}]}, GENERATED),
        ({"shape.min_group": 2}, {"shaped"}),
        ({"shape.pass_rate": [0.1, 0.9]}, {"shaped"}),
        ({"shape.positive_weight": 0.5}, {"shaped"}),
        ({"shape.max_age": 3}, {"shaped"}),
        ({"replay": {"iterations": 2, "share": 0.4, "decay": 0.5}}, set()),
        ({"train.algorithm": "grpo"}, {"shaped", "train"}),
        ({"train.algorithm_args": {"low": 0.1}}, {"train"}),
        ({"train.learning_rate": 1e-3}, {"train"}),
        ({"train.epochs": 1}, {"train"}),
        ({"evaluate.samples": 3}, {"sampled"}),
        ({"evaluate.temperature": 0.5}, {"sampled"}),
        ({"evaluate.solved_at": 0.5}, {"evaluation"}),
        ({"evaluate.bootstrap": 100}, {"evaluation"}),
        ({"evaluate.k": [1, 2]}, {"evaluation"}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_a_setting_changes_the_keys_of(make_config: Config, keys: Keys, changes: dict[str, Any], affected: set[str]) -> None:
    before, after = keys(make_config()), keys(make_config(changes))
    assert {stage for stage in before if before[stage] != after[stage]} == affected


def test_every_stage_has_a_key_of_its_own(make_config: Config, keys: Keys) -> None:
    assert len(set(keys(make_config()).values())) == 7


def test_the_dtype_that_was_meant_is_in_the_key_and_not_the_word_auto(make_config: Config, make_artifact: Any) -> None:
    rollouts = rollouts_request(make_config(), 0, make_artifact("checkpoint"), make_artifact("prompts"))
    assert rollouts.recipe["dtype"] in ("float32", "bfloat16")


def test_an_iteration_draws_and_trains_anew(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    config, policy, other = make_config(), make_artifact("checkpoint"), make_artifact("rollouts")
    rollouts = [rollouts_request(config, number, policy, other) for number in (0, 1)]
    trained = [train_request(config, number, policy, [Part(other, other)]) for number in (0, 1)]
    assert len({request.key for request in (*rollouts, *trained)}) == 4
    assert [request.recipe["iteration"] for request in trained] == [1, 2]


def test_an_age_limit_is_the_oldest_version_that_is_kept(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    rollouts = make_artifact("rollouts")
    limited = [shape_request(make_config({"shape.max_age": 2}), number, rollouts).recipe for number in (0, 2, 5)]
    assert [recipe["oldest_version"] for recipe in limited] == [0, 0, 3]
    assert "oldest_version" not in shape_request(make_config(), 5, rollouts).recipe
    assert "max_age" not in limited[0]["choices"]


def test_shaping_depends_on_the_seed_where_it_draws(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    drawing = [
        {"class_balance": "drop_negatives"},
        {"class_balance": "drop_surplus"},
        {"positive_fraction": 0.5, "positive_fraction_by": "drop"},
    ]
    for choices, draws in [*((choices, True) for choices in drawing), ({"positive_fraction": 0.5}, False), ({}, False)]:
        keys = {shape_request(make_config({"shape": choices, "seed": n}), 0, make_artifact()).key for n in (0, 1)}
        assert len(keys) == 1 + draws


def test_what_is_replayed_is_drawn_anew_in_each_iteration(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    parents = make_artifact("rollouts"), make_artifact("shaped")
    plain, weighed = make_config({"replay.iterations": 1}), make_config({"replay": {"iterations": 1, "loss_weight": 0.5}})
    asked = [(plain, 1, 4), (plain, 2, 4), (plain, 1, 5), (weighed, 1, 4), (plain.model_copy(update={"seed": 1}), 1, 4)]
    keys = {mix_request(config, iteration, *parents, groups).key for config, iteration, groups in asked}
    assert len(keys) == len(asked)


def test_every_part_of_a_training_is_its_parent(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    def part(name: str, *roles: str) -> Part:
        scores = {role: make_artifact("scores", name=name, role=role) for role in roles}
        return Part(make_artifact("rollouts", name=name), make_artifact("shaped", name=name), scores)

    parts = [part("fresh", "reference", "proximal"), part("old", "reference"), part("other")]
    request = train_request(make_config(), 3, make_artifact("checkpoint"), parts)
    assert [parent.role for parent in request.parents] == [
        "policy", "rollouts", "shaped", "proximal", "reference", "replay 1 rollouts", "replay 1 shaped", "replay 1 reference",
        "replay 2 rollouts", "replay 2 shaped",
    ]  # fmt: skip
    assert len({request.key} | {train_request(make_config(), 3, make_artifact("checkpoint"), parts[:n]).key for n in (1, 2)}) == 3


def test_another_policy_has_other_rollouts(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    prompts = make_artifact("prompts")
    one, other = make_artifact("checkpoint", iteration=0), make_artifact("checkpoint", iteration=1)
    for greedy in (True, False):
        keys = {heldout_request(make_config(), policy, prompts, greedy=greedy).key for policy in (one, other)}
        assert len(keys) == 2


def test_heldout_prompts_are_answered_from_the_whole_distribution(make_config: Config, make_artifact: Any) -> None:
    """Cutting the support for training must not change what checkpoints are compared by."""
    config = make_config(
        {"generate": {"top_p": 0.5, "top_k": 3, "min_p": 0.1, "temperature": 0.7}, "evaluate": {"temperature": 0.9}}
    )
    parents = make_artifact("checkpoint"), make_artifact("prompts")
    cut = rollouts_request(config, 0, *parents).recipe["sampling"]
    assert (cut["top_p"], cut["top_k"], cut["min_p"], cut["temperature"]) == (0.5, 3, 0.1, 0.7)
    for greedy, temperature in ((False, 0.9), (True, 0.0)):
        whole = heldout_request(config, *parents, greedy=greedy).recipe["sampling"]
        assert (whole["top_p"], whole["top_k"], whole["min_p"], whole["temperature"]) == (1.0, 0, 0.0, temperature)


def test_prompts_follow_the_bytes_of_their_source(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    config, source = make_config(), PromptSource(path="a.jsonl")

    def key(digest: str, path: str = "a.jsonl", **parents: Artifact | None) -> str:
        moved = source.model_copy(update={"path": path})
        return prompts_request(config, moved, digest, **({"model": None, "disjoint_from": None} | parents)).key

    assert key("aa") == key("aa", path="b.jsonl")
    others = {key("bb"), key("aa", model=make_artifact("checkpoint")), key("aa", disjoint_from=make_artifact("prompts"))}
    assert len(others | {key("aa")}) == 4


def test_no_recipe_names_a_place(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    config = make_config({"run_dir": "SECRET", "store": "SECRET", "model.path": "SECRET", "data.train.path": "SECRET"})
    artifact = make_artifact("rollouts")
    made = (
        prompts_request(config, config.data.train, "aa", model=None, disjoint_from=None),
        rollouts_request(config, 0, artifact, artifact),
        shape_request(config, 0, artifact),
        train_request(config, 0, artifact, [Part(artifact, artifact)]),
        evaluate_request(config, artifact, artifact, artifact),
    )
    assert "SECRET" not in str([request.to_json() for request in made])
