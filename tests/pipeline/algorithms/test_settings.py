"""Algorithms by name, with settings from a config file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve, settings_of
from pipeline.algorithms.cells.advantages import GroupNormalized
from pipeline.algorithms.cells.mismatch import MaskedImportance, NoMismatch, TruncatedImportance
from pipeline.algorithms.cells.regularizers import EntropyBonus, ForwardKL, ReferenceKL
from pipeline.algorithms.cells.trust_region import OneSide
from pipeline.common.errors import UserError


def of(algorithm: Algorithm) -> list[tuple[str, object]]:
    return [(f"{cell}.{name}", value) for cell, name, value in settings_of(algorithm)]


every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


def test_an_algorithm_is_found_by_its_name() -> None:
    assert {name: resolve(name) for name in ALGORITHMS} == ALGORITHMS


def test_settings_are_given_by_field_or_by_cell_and_field() -> None:
    assert resolve("rec-oneside-nois", {"low": 0.6, "high": 2}).trust_region == OneSide(low=0.6, high=2.0)
    assert resolve("rec-oneside-nois", {"trust_region.low": 0.6}).trust_region == OneSide(low=0.6)
    assert resolve("grpo", {"advantage.ddof": 0}).advantage == GroupNormalized(ddof=0)
    assert dict(of(resolve("grpo", {"regularizers.0.coefficient": 0.1})))["regularizers.0.coefficient"] == 0.1
    assert resolve("grpo", {"coefficient": 0.1}).needs == ("behavior_logprobs", "reference_logprobs")


def test_a_setting_of_several_cells_must_be_named_with_its_cell() -> None:
    with pytest.raises(UserError, match=r"'level' is a setting of several cells; write importance\.level or trust_region\.level"):
        resolve("gspo", {"level": "token"})


@pytest.mark.parametrize("order", [1, -1])
def test_a_correction_for_the_mismatch_goes_with_any_policy_gradient(order: int) -> None:
    changes = {"mismatch": "TruncatedImportance", "mismatch.high": 3, "mismatch.level": "sequence"}
    settings = dict(list(changes.items())[::order])
    for name, algorithm in ALGORITHMS.items():
        if algorithm.kernel == "policy_gradient" and name != "remix":
            corrected = resolve(name, settings)
            assert corrected.mismatch == TruncatedImportance(high=3.0, level="sequence")  # type: ignore[attr-defined]
            assert {"behavior_logprobs", "proximal_logprobs"} <= set(corrected.needs)
    assert resolve("grpo", {"mismatch": "MaskedImportance"}).mismatch == MaskedImportance(high=2.0, mode="mask")
    assert resolve("decoupled-ppo", {"mismatch": "NoMismatch"}).mismatch == NoMismatch()


def test_regularizers_go_with_any_policy_gradient() -> None:
    settings = {"regularizers": ["EntropyBonus", "ForwardKL"], "regularizers.0.coefficient": 0.01}
    assert resolve("grpo", settings).regularizers == (EntropyBonus(coefficient=0.01), ForwardKL(coefficient=0.1))
    kept = resolve("reinforce", {"regularizers": "ReferenceKL", "coefficient": 0.2, "estimator": "k2"})
    assert kept.regularizers == (ReferenceKL(coefficient=0.2, estimator="k2"),)
    assert kept.needs == ("reference_logprobs",)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        (
            "grpo",
            {"mismatch": "TruncatedImportanc"},
            "mismatch: no cell 'TruncatedImportanc'; did you mean 'TruncatedImportance'?",
        ),
        ("grpo", {"mismatch": 2.0}, "mismatch: no cell 2.0; known: TruncatedImportance, "),
        ("grpo", {"mismatch": ["NoMismatch", "MaskedImportance"]}, "mismatch: expected the name of one cell"),
        ("grpo", {"regularizers": "EntropyBonus"}, "EntropyBonus has coefficient 0 and does nothing; set regularizers.0.coeff"),
        ("grpo", {"mismatch.high": 2.0}, "grpo has no setting 'mismatch.high'"),
        ("dpo", {"mismatch": "TruncatedImportance"}, "dpo has no setting 'mismatch'"),
        ("grpo", {"trust_region": "TwoSide"}, "grpo has no setting 'trust_region'"),
    ],
)
def test_a_modifier_that_cannot_be_is_refused(name: str, settings: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(name, settings)
    assert str(error.value).startswith("train.algorithm_args: ")
    assert expected in str(error.value)


def test_settings_leave_the_declaration_as_it_was() -> None:
    resolve("grpo", {"low": 0.7})
    assert resolve("grpo").trust_region == OneSide()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("rec-oneside-noise", {}, "no algorithm 'rec-oneside-noise'; did you mean 'rec-oneside-nois'?"),
        ("qqq", {}, "known: reinforce, "),
        ("grpo", {"hihg": 0.2}, "grpo has no setting 'hihg'; did you mean 'high'?"),
        ("grpo", {"trust_region.lwo": 0.2}, "did you mean 'trust_region.low'?"),
        ("grpo", {"advantage.low": 0.2}, "no setting 'advantage.low'"),
        ("grpo", {"aggregation": "token"}, "no setting 'aggregation'"),
        ("reinforce", {"low": 0.2}, "reinforce has no setting 'low'; known: shift"),
        ("p3o", {"epsilons": 0.2}, "did you mean 'epsilon'?"),
        ("red-drop", {"filters.1.seed": 0}, "red-drop has no setting 'filters.1.seed'"),
        ("dapo", {"low": "x"}, "train.algorithm_args: low: "),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, settings: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(name, settings)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("low", "wide"),
        ("low", None),
        ("low", [0.2]),
        ("low", float("nan")),
        ("low", float("inf")),
        ("ddof", 0.5),
        ("ddof", "one"),
        ("ddof", 2),
        ("trust_region.level", "word"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^train.algorithm_args: {key}: .*found"):
        resolve("grpo", {key: value})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("oapl", "advantage.beta", 0),
        ("oapl", "target.beta", -1.0),
        ("red-weight", "temperature", 0),
        ("dapo", "buffer", 0),
        ("dr-grpo", "divisor", 0),
        ("bapo", "low_step", 0),
        ("bapo", "high_step", -0.05),
        ("dpo", "beta", 0),
        ("ipo", "tau", 0),
        ("kto", "beta", -0.1),
        ("dpo", "soft", -1),
        ("dpo", "margin", float("nan")),
        ("dpo", "cap", -1),
        ("grpo", "epsilon", -1e-6),
        ("reinforce++", "epsilon", -1e-8),
        ("dapo", "limit", -1),
    ],
)
def test_a_number_that_a_method_cannot_work_with_is_refused(name: str, key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^train.algorithm_args: {key}: .*found"):
        resolve(name, {key: value})


@pytest.mark.parametrize("key", ["importance.level", "positive_high", "importance.negative_low"])
@pytest.mark.parametrize("name", ["grpo", "rloo", "decoupled-ppo", "raft++"])
def test_a_surrogate_refuses_settings_that_its_loss_does_not_read(name: str, key: str) -> None:
    assert not any(setting.endswith(key) for setting, _ in of(resolve(name)))
    value = "sequence" if key == "importance.level" else 0.5
    with pytest.raises(UserError, match=f"^train.algorithm_args: {key}: .*the surrogate form .* use an algorithm in score form"):
        resolve(name, {key: value})


def test_a_setting_that_another_cell_cannot_go_with_is_refused_as_any_other() -> None:
    with pytest.raises(UserError, match=r"^train\.algorithm_args: trust_region\.level: grpo: .* must be OneSide"):
        resolve("grpo", {"trust_region.level": "geometric"})
    with pytest.raises(UserError, match=r"^train\.algorithm_args: level: grpo: .* must be OneSide"):
        resolve("grpo", {"level": "sequence"})


@every_algorithm
def test_every_number_among_the_settings_changes_a_recipe(algorithm: Algorithm) -> None:
    settings = dict(of(algorithm))
    for key, value in settings.items():
        if type(value) in (int, float):
            active = {name: 1.0 for name in [key.rpartition(".")[0] + ".coefficient"] if settings.get(name) == 0}
            other = 1 - value if key.endswith("ddof") else value + 1  # type: ignore[operator]
            before, after = (resolve(algorithm.name, {**active, **change}) for change in ({}, {key: other}))
            if key not in active:
                assert (before.recipe(), before.shaping_recipe()) != (after.recipe(), after.shaping_recipe()), key


@every_algorithm
def test_recipes_are_json_and_the_same_every_time(algorithm: Algorithm) -> None:
    for recipe in (algorithm.recipe(), algorithm.shaping_recipe()):
        assert json.loads(json.dumps(recipe, allow_nan=False)) == recipe


@every_algorithm
def test_every_algorithm_says_what_it_is(algorithm: Algorithm) -> None:
    assert all((algorithm.name, algorithm.summary, algorithm.formula))


def test_algorithms_are_listed_without_importing_torch() -> None:
    program = "import sys, pipeline.algorithms.describe as d; d.describe_all(); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "vllm", "transformers"} & set(found.stdout.split())
