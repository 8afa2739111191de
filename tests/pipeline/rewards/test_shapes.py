"""Own functions of other trainers' shapes: each parameter is given what its name says, or the function is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.config.reward import RewardComponent
from pipeline.rewards.items import Score
from pipeline.rewards.pool import RewardItem
from pipeline.rewards.registry import check_prompts, recipe_of, resolve
from tests.pipeline.rewards.conftest import Grade

ROW = {
    "prompt_id": "p1",
    "question": "2+2?",
    "answer": "4",
    "prompt_text": "Q: 2+2?\nA:",
    "metadata": {"level": 3, "data_source": "sums", "extra_info": {"index": 7}},
}

OWN = """
    import numpy

    def ours(completion, answer, prompt): return [completion, answer, prompt["question"]]
    def turned(prompt, completion, answer): return [completion, answer, prompt["question"]]
    def two(answer, completion): return [completion, answer]
    def only(completion, /): return [completion]
    def text(prompt: str, response, reference): return [response, reference, prompt]
    def beside(completion, answer, question, metadata, prompt_id, *, scale=1):
        return [completion, question, metadata, prompt_id, scale]

    def verl(data_source, solution_str, ground_truth, extra_info=None):
        return [data_source, solution_str, ground_truth, extra_info]
    def gsm8k(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
        return [solution_str, ground_truth, method]
    def verl_scores(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
        return {"score": numpy.float32(0.5), "acc": True}
    def verl_lists(data_sources, solution_strs, ground_truths, extra_infos):
        return [{"score": float(text == truth)} for text, truth in zip(solution_strs, ground_truths)]

    def trl(prompts, completions, **columns): return [[prompts, completions, columns]]
    def trl_named(completions, ground_truth, level, **kwargs): return [[completions, ground_truth, level, sorted(kwargs)]]
    def trl_optional(completions, answer=None, solution=None, other="unset"): return [[answer, solution, other]]
    def trl_numbers(completions, answer, **kwargs):
        return numpy.array([text == right for text, right in zip(completions, answer)])
    def trl_none(completions, **kwargs): return [None]
    def trl_many(completions, **kwargs): return [1.0, 0.0]
    def trl_float(completions, **kwargs): return 1.0
    def chat(prompts, completions, **kwargs): return [[prompts, completions[0][0]["content"], completions[0][0]["role"]]]
    def column(completions, tests, **kwargs): return [len(tests[0])]
    def openrlhf(queries, prompts, labels): return {"rewards": numpy.array([float(queries[0] == prompts[0] + labels[0])]), "x": 1}

    def sample(args, sample): return 0
    def both(completion, completions): return 0
    def starred(*args, **kwargs): return 0
    def parsed(completion, answer, parser, state): return 0
    def ids(completions, completion_ids, **kwargs): return [0]
    def yields(completion, answer, prompt): yield 1
    class Later:
        async def __call__(self, completion, answer, prompt): return 1
    later = Later()
    class Counted:
        def __call__(self, completions, solution, **kwargs): return [float(completions == solution)]
    counted = Counted()
"""


@pytest.fixture
def call(own: Callable[[str], str]) -> Callable[..., Any]:
    module = own(OWN)

    def run(name: str, completion: str = "4", **args: Any) -> Any:
        return resolve(RewardComponent(grader=f"{module}:{name}", args=args))(completion, "4", ROW)

    return run


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ours", ["no", "4", "2+2?"]),
        ("turned", ["no", "4", "2+2?"]),
        ("two", ["no", "4"]),
        ("only", ["no"]),
        ("text", ["no", "4", "Q: 2+2?\nA:"]),
        ("beside", ["no", "2+2?", ROW["metadata"], "p1", 1]),
        ("verl", ["sums", "no", "4", {"index": 7}]),
        ("gsm8k", ["no", "4", "strict"]),
    ],
)
def test_parameters_are_given_what_their_names_say(call: Callable[..., Any], name: str, given: list[Any]) -> None:
    assert call(name, "no") == given


def test_a_function_of_lists_is_given_lists_of_one_and_its_element_counts(call: Callable[..., Any]) -> None:
    columns = {"prompt_id": ["p1"], "question": ["2+2?"], "answer": ["4"], "level": [3], "data_source": ["sums"]}
    assert call("trl", "no") == [["Q: 2+2?\nA:"], ["no"], {**columns, "extra_info": [{"index": 7}]}]
    assert call("trl_named", "no")[:3] == [["no"], ["4"], [3]]
    assert call("trl_optional") == [["4"], ["4"], "unset"]
    assert (call("trl_numbers", "4"), call("trl_numbers", "5")) == (True, False)
    assert (call("counted", "4"), call("counted", "5")) == (1.0, 0.0)
    assert (call("verl_lists", "4"), call("verl_lists", "5")) == ({"score": 1.0}, {"score": 0.0})
    assert (call("openrlhf", "4"), call("openrlhf", "5")) == (1.0, 0.0)
    assert call("trl_none") is None
    assert call("chat", "no", conversational=True) == [[[{"role": "user", "content": "2+2?"}]], "no", "assistant"]


def test_args_are_settings_and_data_that_the_prompts_lack(call: Callable[..., Any]) -> None:
    assert call("beside", scale=2)[-1] == 2
    assert call("verl", data_source="openai/gsm8k")[0] == "openai/gsm8k"
    assert call("gsm8k", method="flexible")[-1] == "flexible"
    assert call("trl_optional", other="set")[-1] == "set"


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        (
            "sample",
            {},
            "its signature is (args, sample), and parameters are matched by name: (completion, answer, prompt), verl's",
        ),
        ("both", {}, "It asks for one completion and for a list of them"),
        ("starred", {}, "None of its parameters is the completion"),
        ("parsed", {}, "needs a value for args.parser, args.state: its signature is (completion, answer, parser, state)"),
        ("ids", {}, "needs a value for args.completion_ids"),
        ("yields", {}, "yields; a grader is a plain function"),
        ("later", {}, "is an `async def`"),
        ("turned", {"answer": "x"}, "unknown arg `answer`; that parameter is given what its name says"),
        ("gsm8k", {"mode": "x"}, "unknown arg `mode`; did you mean `method`?"),
    ],
)
def test_what_no_shape_fits_is_refused_before_any_work(
    call: Callable[..., Any], name: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        call(name, **args)
    assert said in str(caught.value)


def test_lists_of_another_length_are_told(call: Callable[..., Any]) -> None:
    assert call("trl_many") == Score(None, "returned 2 scores for one completion: [1.0, 0.0]")
    assert call("trl_float") == Score(None, "returned 1.0, expected a list of one score")


def test_workers_grade_with_other_trainers_functions(grade: Grade, own: Callable[[str], str]) -> None:
    module = own(OWN)
    names = {"verl_scores": 1.0, "trl_numbers": 2.0, "trl_none": 4.0}
    parts = [RewardComponent(grader=f"{module}:{name}", weight=weight) for name, weight in names.items()]
    (result,) = grade(parts, [RewardItem("4", "4", {**ROW, "metadata": json.dumps(ROW["metadata"])})])
    assert (result.reward, result.error) == (2.5, None)
    assert result.components == {"reward_verl_scores": 0.5, "reward_trl_numbers": 1.0, "reward_trl_none": None}
    assert result.remarks == {"reward_verl_scores": '{"acc": true}'}


def test_a_column_that_no_prompt_has_is_told_before_any_work(own: Callable[[str], str]) -> None:
    component = RewardComponent(grader=f"{own(OWN)}:column")
    with pytest.raises(DataError) as caught:
        check_prompts([component], lambda: [ROW], "train.jsonl")
    said = (
        "asks for the column 'tests', which no prompt has; there are answer, data_source, extra_info, level, prompt_id, question"
    )
    assert str(caught.value) == f"train.jsonl: reward.components.0 ({component.grader}): {said}"
    check_prompts([component], lambda: [ROW, {**ROW, "metadata": '{"tests": []}'}], "train.jsonl")
    with pytest.raises(ValueError, match="the prompt has no column 'tests'; it has prompt_id, question, answer, level"):
        resolve(component)("4", "4", ROW)


def test_what_was_called_by_place_before_has_another_recipe_unless_it_was_called_the_same(own: Callable[[str], str]) -> None:
    module = own(OWN)
    assert "arguments" not in recipe_of(RewardComponent(grader=f"{module}:ours"))
    for name in ("turned", "verl", "trl"):
        assert recipe_of(RewardComponent(grader=f"{module}:{name}"))["arguments"] == "by name"
