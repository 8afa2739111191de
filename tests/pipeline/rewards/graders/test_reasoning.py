"""reasoning_gym: every data set's own answer is right, and what a policy could make of the others is refused."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from pipeline.common.errors import DataError, UserError
from pipeline.config.data import PromptSource
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.graders.measured import measured, weaknesses
from pipeline.rewards.graders.reasoning import check_prompts, metadata_of
from pipeline.rewards.items import Score, prompt_for_grader
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import recipe_of, resolve
from pipeline.sources.mixing import load

ROOT = Path(__file__).parents[4]
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Their items have many right answers and name none."""


def item(name: str, number: int = 0, **config: Any) -> dict[str, Any]:
    """As a file holds it."""
    made = reasoning_gym.create_dataset(name, seed=7, size=number + 1, **config)[number]
    return dict(json.loads(json.dumps(made)))


def score(completion: str, prompt: dict[str, Any], **args: Any) -> Score:
    found = resolve(RewardComponent(grader="reasoning_gym", args=args))(completion, prompt["answer"], prompt)
    assert isinstance(found, Score)
    return found


def test_every_data_sets_items_score_their_own_answer_1(tmp_path: Path) -> None:
    names = sorted(set(DATASETS) - WITHOUT_ANSWER - {"composite"})
    assert len(names) == 100
    file = tmp_path / "items.jsonl"
    rows = [next(row for row in map(item, [name] * 9, range(9)) if row["answer"]) for name in names]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    good, bad = load(PromptSource(path=str(file)))
    assert bad.is_empty()
    check_prompts(good.iter_rows(named=True), accept_weakness=True)
    found = {}
    for name, row in zip(names, good.iter_rows(named=True), strict=True):
        prompt = prompt_for_grader(row)
        for args in ({}, {"dataset": name}):
            found[name, len(args)] = score(row["answer"], prompt, accept_weakness=True, **args)
    assert {both: said for both, said in found.items() if said != Score(1.0)} == {}


@pytest.mark.parametrize("name", ["arc_agi", "rearc"])
def test_grids_are_compared_although_json_has_no_tuples(name: str) -> None:
    row = item(name)
    assert score(row["answer"], row) == Score(1.0)
    assert score(row["answer"].replace(row["answer"][0], "x"), row).score == 0.0
    assert score("\n".join(row["answer"].splitlines()[:-1]), row).score == 0.05


def test_items_below_a_column_metadata_are_read_too() -> None:
    row = item("chain_sum")
    assert metadata_of({"metadata": {"metadata": row["metadata"]}})["source_dataset"] == "chain_sum"
    assert score(row["answer"], {**row, "metadata": {"metadata": json.dumps(row["metadata"]), "split": "x"}}) == Score(1.0)


def test_the_configuration_of_the_data_set_reaches_its_scorer() -> None:
    config = {"min_num_decimal_places": 8, "max_num_decimal_places": 8}
    row = item("decimal_arithmetic", **config)
    near = f"{float(row['answer']) + 4e-7:.8f}"
    assert score(near, row, dataset="decimal_arithmetic").score == 1.0
    assert score(near, row, dataset="decimal_arithmetic", config=config).score == 0.0
    assert score(row["answer"], row, dataset="decimal_arithmetic", config=config).score == 1.0


def test_a_group_of_settings_is_a_mapping() -> None:
    options = {"array_brackets": True, "col_delimiter": ",", "row_delimiter": ","}
    from reasoning_gym.arc.board_format import BoardFormattingOptions

    row = item("arc_agi", board_format_opts=BoardFormattingOptions(**options))  # type: ignore[arg-type]
    grid = "\n".join(" ".join(map(str, line)) for line in row["metadata"]["output"])
    assert score(grid, row, dataset="arc_agi").score == 1.0
    assert score(grid, row, dataset="arc_agi", config={"board_format_opts": options}).score == 0.0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"dataset": "countdwn"}, "no dataset 'countdwn'; did you mean countdown?"),
        ({"dataset": "chain_sum", "config": {"min_term": 3}}, "no setting 'min_term'; did you mean min_terms?"),
        ({"dataset": "chain_sum", "config": {"min_terms": 9, "max_terms": 2}}, "args.config: chain_sum refuses it: "),
        ({"dataset": "chain_sum", "config": [1]}, "args.config: expected settings of the dataset"),
        ({"config": {"min_terms": 3}}, "args.config: settings of which dataset?"),
        ({"accept_weakness": "yes"}, "args.accept_weakness: expected bool, found 'yes'"),
    ],
)
def test_settings_are_refused_before_any_work(args: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RewardComponent(grader="reasoning_gym", args=args)).prepare()
    assert said in str(caught.value)


def test_composite_items_name_their_data_set() -> None:
    row = item("chain_sum")
    assert score(row["answer"], row, dataset="composite") == Score(1.0)
    config = {"datasets": [{"name": "decimal_arithmetic", "config": {"max_num_decimal_places": 8}}]}
    decimal = item("decimal_arithmetic", min_num_decimal_places=8, max_num_decimal_places=8)
    near = f"{float(decimal['answer']) + 4e-7:.8f}"
    assert score(near, decimal, dataset="composite", config=config).score == 0.0


def test_what_a_scorer_raises_on_nonsense_is_0_with_a_remark() -> None:
    row = item("prime_factorization")
    said = score("I do not know", row)
    assert (said.score, said.error) == (0.0, None)
    assert said.remark is not None and said.remark.startswith(
        "0: prime_factorization cannot read it: ValueError: invalid literal"
    )


def test_an_item_that_cannot_score_its_own_answer_is_an_error_and_not_a_zero() -> None:
    row = {**item("prime_factorization"), "answer": "two times three"}
    with pytest.raises(ValueError, match="prime_factorization cannot score this item, not even its own answer"):
        score("I do not know", row)


def test_shares_that_add_up_to_more_than_1_are_1() -> None:
    row = {**item("spell_backward"), "answer": "abcdef"}
    library = reasoning_gym.create_dataset("spell_backward", seed=7, size=1).score_answer
    above = [text for size in range(2, 60) if library((text := "ab" * size) + "c", {"answer": text}) > 1]
    assert above
    for text in above:
        assert score(text + "c", {**row, "answer": text}) == Score(1.0)


def test_missing_metadata_is_refused_by_name_before_any_work() -> None:
    row = {"prompt_id": "p7", "question": "q", "answer": "94*4", "metadata": {"source_dataset": "countdown", "target": 376}}
    with pytest.raises(DataError) as caught:
        check_prompts([row], accept_weakness=True)
    missing = "metadata.numbers missing; countdown cannot score without. Keep the column `metadata` of the items"
    assert str(caught.value) == f"prompts that reasoning_gym cannot score:\n  prompt 'p7': {missing}"
    with pytest.raises(ValueError, match=r"metadata\.numbers missing"):
        score("94*4", row, accept_weakness=True)
    with pytest.raises(DataError, match=r"which dataset\? the args name none"):
        check_prompts([{"prompt_id": "p", "metadata": None}])
    with pytest.raises(DataError, match=r"metadata\.source_dataset is 'countdown', and args.dataset 'chain_sum'"):
        check_prompts([row], dataset="chain_sum")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("game_of_life_halting", "whatever the question"),
        ("puzzle24", "whatever the question"),
        ("coin_flip", "the answer '0' earns 1 on average, whatever the question"),
        ("complex_arithmetic", "whatever the question"),
        ("propositional_logic", "whatever the question"),
        ("countdown", "the scorer executes the completion as Python code"),
        ("polynomial_multiplication", "the scorer executes the completion as Python code"),
        ("spiral_matrix", "the scorer executes the completion as Python code"),
    ],
)
def test_weak_data_sets_are_refused_unless_they_are_accepted(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RewardComponent(grader="reasoning_gym", args={"dataset": name}))
    assert said in str(caught.value) and str(caught.value).endswith("or accept it: args.accept_weakness: true")
    row = {"prompt_id": "p", "answer": "1", "metadata": {"source_dataset": name}}
    with pytest.raises(DataError, match="accept_weakness"):
        check_prompts([row])
    resolve(RewardComponent(grader="reasoning_gym", args={"dataset": name, "accept_weakness": True}))


def test_whoever_accepts_that_completions_are_executed_is_told_whenever_they_are() -> None:
    args = {"dataset": "countdown", "accept_weakness": True}
    with RewardPool(RewardConfig(components=(RewardComponent(grader="reasoning_gym", args=args),))) as pool:
        (note,) = pool.notes
    assert note.startswith("reasoning_gym executes what the model writes as Python code (dataset countdown)")
    assert resolve(RewardComponent(grader="reasoning_gym", args={"dataset": "chain_sum"})).notes == ()


def test_the_grader_gives_other_scores_than_its_first_version() -> None:
    assert recipe_of(RewardComponent(grader="reasoning_gym", args={"dataset": "chain_sum"}))["version"] == 2


def test_all_data_sets_of_the_installed_library_are_measured() -> None:
    assert measured()["library"] == importlib.metadata.version("reasoning_gym")
    assert set(measured()["datasets"]) == set(DATASETS) - {"composite"}
    assert not weaknesses("chain_sum") and not weaknesses("not_measured")


@pytest.fixture(scope="module")
def sets() -> Any:
    spec = importlib.util.spec_from_file_location("reasoning_sets", ROOT / "benchmarks" / "reasoning_sets.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["chain_sum", "coin_flip", "game_of_life_halting", "prime_factorization", "spell_backward"])
def test_what_was_measured_is_measured_again(sets: Any, name: str) -> None:
    stated = measured()["datasets"][name]
    assert sets.row(name) == {key: value for key, value in stated.items() if key != "hash_seed"}


def test_a_scorer_that_executes_completions_is_found(sets: Any) -> None:
    import sys

    sys.addaudithook(sets._hook)
    items = [(row, row["answer"]) for row in (item("spiral_matrix"), item("chain_sum"))]
    assert sets.evaluated("spiral_matrix", items[:1]) == {"completion"}
    assert sets.evaluated("chain_sum", items[1:]) == set()
