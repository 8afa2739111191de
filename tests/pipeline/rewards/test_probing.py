"""What a probe says of graders whose faults are known, and the quick form of it that `check` shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.prepare.draft import PATTERN as NUMBER
from pipeline.rewards.probing.dresses import USUAL, dress_of, dresses_of
from pipeline.rewards.probing.first_look import first_look
from pipeline.rewards.probing.kinds import EVERYTHING, NOTHING, Setting, dressed
from pipeline.rewards.probing.probe import Probed, Tally, probe
from pipeline.rewards.probing.rows import row_of

Own = Callable[[str], str]
SUMS = [
    {"prompt_id": f"p{n}", "question": f"What is {n} times 37?", "answer": str(37 * n), "metadata": None} for n in range(30, 60)
]


def config(grader: str, **args: Any) -> RewardConfig:
    return RewardConfig(components=(RewardComponent(grader=grader, args=args),))


def own_config(own: Own, body: str) -> RewardConfig:
    return config(f"{own(f'import re{chr(10)}def score(completion, answer):{chr(10)}    {body}')}:score")


def tally(found: Probed, kind: str) -> Tally:
    return next(tally for tally in found.tallies if tally.kind == kind)


def earning(found: Probed) -> list[str]:
    """Kinds that should earn nothing and do."""
    return [tally.kind for tally in found.tallies if tally.verdict == "EARNS"]


def test_a_sound_grader_passes() -> None:
    found = probe(config("regex", pattern="A:(-?[0-9]+)$"), SUMS)
    assert (found.problems, found.unearned, found.rows, found.written) == ([], 0, 30, "as A:{answer}")
    neighbors = tally(found, "one more, one less")
    assert (neighbors.asked, neighbors.earned, neighbors.verdict) == (30, 0, "ok")
    assert tally(found, "as A:{answer}").share == 1.0
    boxed = tally(found, "boxed")
    assert boxed.verdict == "not taken" and boxed.example is not None
    assert (boxed.example.text, boxed.example.answer, boxed.example.reward) == ("\\boxed{1110}", "1110", 0.0)


def test_a_grader_that_looks_for_the_answer_anywhere_takes_lists(own: Own) -> None:
    found = probe(own_config(own, "return float(answer in completion)"), SUMS)
    assert {"five answers in one", "five answers, each marked", "ten times, a tenth"} <= set(earning(found))
    assert "five answers in one: earns on 30 of 30 prompts, and should on none" in found.problems
    example = tally(found, "five answers in one").example
    assert example is not None and example.text == "\\boxed{1110, 1108, 1109, 1111, 1112}"


@pytest.mark.parametrize("which", ["first", "last"])
def test_one_answer_at_one_place_of_a_list_is_one_answer(which: str) -> None:
    found = probe(config("regex", pattern=NUMBER, which=which, numeric=True), SUMS)
    assert tally(found, "five answers in one").earned == 0
    assert tally(found, "five answers in one").means["reward"] == pytest.approx(1 / 3)
    assert earning(found) == []


def test_what_everything_earns_nothing_of_it_should(own: Own) -> None:
    found = probe(own_config(own, "return 1.0"), SUMS)
    asked = [tally.kind for tally in found.tallies if tally.should_earn == "nothing" and tally.asked]
    assert earning(found) == asked and len(asked) == 11


def test_a_grader_that_gives_nothing_to_right_answers(own: Own) -> None:
    found = probe(own_config(own, "return 0.0"), SUMS)
    assert found.unearned == 30 and earning(found) == []
    assert found.problems[0].startswith("the right answer earns nothing on 30 of 30 prompts, whether it is written boxed, in an ")
    assert "The first is p30, answer '1110'" in found.problems[0]


def test_a_grader_that_raises_is_shown_raising(own: Own) -> None:
    found = probe(own_config(own, "raise KeyError('gold')"), SUMS)
    assert found.problems[0].endswith("'1110': reward_score: KeyError: 'gold'")
    assert tally(found, "boxed").verdict == "not asked"


def test_right_and_wrong_may_be_any_two_numbers(own: Own) -> None:
    for right, wrong in ((1, -1), (0, -2), (10, 0.1)):
        found = probe(own_config(own, f"return {right} if completion == answer else {wrong}"), SUMS[:5])
        assert (found.problems, found.unearned, found.written) == ([], 0, "as it is"), (right, wrong)


def test_a_form_of_its_own_can_be_given(own: Own) -> None:
    grader = own_config(own, "return float(completion.endswith('Final: ' + answer))")
    assert probe(grader, SUMS).unearned == 30
    found = probe(grader, SUMS, written=["Final: {answer}"])
    assert (found.problems, found.written) == ([], "as Final: {answer}")
    with pytest.raises(UserError, match=r"'Final:': has no \{answer\} in it"):
        probe(grader, SUMS, written=["Final:"])


def test_a_cut_solution_that_earns(own: Own) -> None:
    """The last number of the first half is the answer already."""
    worked = {str(row["question"]): f"It is {row['answer']} apples. We check it, word by word, with nothing new." for row in SUMS}
    found = probe(config("regex", pattern=NUMBER), SUMS, worked=worked)
    assert earning(found) == ["half of a solution"]
    assert probe(config("math_verify"), SUMS, worked=worked).problems == []


def test_an_answer_in_a_worked_reference_is_found() -> None:
    row = row_of({"prompt_id": "p", "question": "q", "answer": "9*2=18\n#### 18", "metadata": None})
    assert (row.answer, row.solution) == ("18", "9*2=18\n#### 18")
    row = row_of({"prompt_id": "p", "question": "q", "answer": "18", "metadata": '{"Rationale": "9*2 is 18"}'})
    assert (row.answer, row.solution) == ("18", "9*2 is 18")


def test_one_text_that_pleases_a_grader_is_found(own: Own) -> None:
    found = probe(own_config(own, "return float(completion == answer or '{}' in completion)"), SUMS)
    assert set(earning(found)) == {"one text for all questions"}
    example = tally(found, "one text for all questions").example
    assert example is not None and example.text == "{}"


def test_a_frequent_answer_is_told_and_is_no_fault_of_the_grader() -> None:
    rows = [{**row, "answer": "yes" if n % 3 else "no"} for n, row in enumerate(SUMS)]
    found = probe(config("exact_match"), rows)
    assert found.notes == ["the most frequent answer, 'yes', is right for 67% of the prompts"]
    assert (tally(found, "the most frequent answer").asked, earning(found)) == (10, [])


def test_components_are_weighed_and_shown_one_by_one() -> None:
    parts = (
        RewardComponent(grader="exact_match", args={"extract": "<answer>(.*?)</answer>"}),
        RewardComponent(grader="regex", args={"pattern": "<answer>.*</answer>", "compare": False}, weight=0.1),
    )
    found = probe(RewardConfig(components=parts), SUMS)
    means = tally(found, "one more, one less").means
    assert (found.problems, found.written) == ([], "in an answer tag")
    assert means == {"reward": pytest.approx(0.1), "reward_exact_match": 0.0, "reward_regex": 1.0}
    assert earning(probe(RewardConfig(components=parts[1:]), SUMS))  # a format alone is no answer


def test_graders_that_cannot_be_asked_are_named() -> None:
    judge = RewardComponent(grader="judge", args={"url": "http://localhost:1/v1", "model": "m", "template": "{completion}"})
    found = probe(RewardConfig(components=(RewardComponent(grader="exact_match"), judge)), SUMS)
    assert list(found.skipped) == ["reward_judge"] and "every question goes to a server" in found.skipped["reward_judge"]
    with pytest.raises(UserError, match="reward: reward_judge is not asked: every question goes to a server"):
        probe(RewardConfig(components=(judge,)), SUMS)


def gym_rows(name: str, size: int) -> list[dict[str, Any]]:
    import reasoning_gym

    made = reasoning_gym.create_dataset(name, seed=3, size=size)
    return [
        {
            "prompt_id": f"p{n}",
            "question": entry["question"],
            "answer": entry["answer"],
            "metadata": json.dumps(entry["metadata"]),
        }
        for n, entry in enumerate(made)
    ]


@pytest.mark.parametrize(
    ("name", "caught"),
    [
        ("game_of_life_halting", "one text for all questions"),
        ("puzzle24", "another question's answer"),
        ("chain_sum", "the other sign"),  # an answer that holds the right one earns the share of its length
    ],
)
def test_what_is_known_of_weak_data_sets_is_found(name: str, caught: str) -> None:
    found = probe(config("reasoning_gym", dataset=name, accept_weakness=True), gym_rows(name, 12))
    assert caught in earning(found)


def test_answers_that_are_words() -> None:
    rows = [{**row, "answer": word} for row, word in zip(SUMS, ["Oslo", "Paris", "Lima", "Rome", "Cairo"], strict=False)]
    found = probe(config("exact_match", ignore_case=True), rows)
    assert (tally(found, "a letter off").asked, tally(found, "one more, one less").verdict) == (5, "not asked")
    assert found.problems == []


def test_kinds_have_names_of_their_own_that_the_page_explains() -> None:
    names = [kind.name for kind in (*NOTHING, *EVERYTHING)] + [dress.name for dress in USUAL]
    page = (Path(__file__).parents[3] / "docs/grading.md").read_text(encoding="utf-8")
    assert len(set(names)) == len(names)
    assert [name for name in names if f"| {name} |" not in page] == []


ANSWERS = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.text(min_size=1).filter(lambda text: text.strip() != ""),
    st.sampled_from(["1,234", "$18", "0", "-0", "007", "yes", "\\boxed{", "100", "1.50"]),
)


@given(answer=ANSWERS, others=st.lists(ANSWERS, max_size=4))
def test_whatever_the_answer_is_no_answer_that_should_earn_nothing_is_it(answer: str, others: list[str]) -> None:
    row = row_of({"prompt_id": "p", "question": "Which one is it?", "answer": answer, "metadata": None})
    plain = next(dress for dress in USUAL if dress.is_plain)
    wrong = tuple(other for other in others if not row.is_right(other))
    setting = Setting(plain, (plain,), {"p": wrong}, wrong[0] if wrong else None)
    for kind in NOTHING:
        offers = list(kind.offers(row, setting))
        assert not any(row.is_right(offer.text) for offer in offers), kind.name
    for kind in (*map(dressed, USUAL), *EVERYTHING):
        assert all(answer.strip("$") in offer.text or row.number is not None for offer in kind.offers(row, setting)), kind.name


@given(before=st.text("ab:.[(\\ #{", max_size=8), after=st.text("ab:.])$}", max_size=5), answer=st.from_regex(r"\A[0-9]{1,6}\Z"))
def test_a_pattern_finds_the_answer_in_its_dress(before: str, after: str, answer: str) -> None:
    pattern = f"{re.escape(before)}([0-9]+){re.escape(after)}"
    dress = dress_of(pattern)
    assert (dress is None) == (before == after == "")
    found = re.search(pattern, dress.around(answer) if dress else answer)
    assert found is not None and found[1] == answer


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(?i)answer\s*(?:is|:)\s+(\d+)", "answer is 18"),
        (r"\\boxed\{([^}]*)\}", "\\boxed{18}"),
        (r"<a>([^<]+)</a>|(x)", "<a>18</a>"),
        (r"(?s)^<think>.*</think>\s*<answer>.*</answer>$", "<think></think> <answer>18</answer>"),
        (r"#{4} (.+)$", "#### 18"),
        (r"[A-Z]: (\d)", "A: 18"),
        (r"[^0-9]=(\d)", "x=18"),
        (r"(?:A: (.*))?", "A: 18"),
        (r"(?=A)A:(\d)(?!x)", "AA:18"),
        (NUMBER, None),
        (r"(?<=A:)\d+", None),
        ("(", None),
    ],
)
def test_the_dress_of_a_pattern(pattern: str, expected: str | None) -> None:
    dress = dress_of(pattern)
    assert (dress and dress.around("18")) == expected


def test_dresses_are_not_asked_twice() -> None:
    component = RewardComponent(grader="exact_match", args={"extract": "<answer>(.*?)</answer>"})
    assert [dress.name for dress in dresses_of([component], ["A {answer}"])] == [
        *("as A {answer}", "in an answer tag", "boxed", "announced", "behind ####", "as it is")
    ]


def lines(found: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [text for what, text in found if what == name]


def test_a_first_look_tells_what_graders_give() -> None:
    found = first_look(config("regex", pattern="A:(-?[0-9]+)$"), SUMS)
    assert found == [("graded", "reward_regex: the right answer 1 ('A:1110'), an empty one 0, on 3 prompts")]


def test_the_pattern_that_init_proposes_takes_right_answers_only() -> None:
    found = probe(config("regex", pattern=NUMBER, numeric=True), SUMS)
    assert found.problems == [] and {tally.verdict for tally in found.tallies} == {"ok", "not asked"}


def test_a_reward_that_is_0_for_everything_is_told(own: Own) -> None:
    found = first_look(own_config(own, "return 0"), SUMS)
    assert lines(found, "graded") == ["reward_score: the right answer 0 ('1110'), an empty one 0, on 3 prompts"]
    (warning,) = lines(found, "warning")
    assert re.match(
        r"reward\.components\.0 \(own_\w+:score\): gives an empty answer as much as the right one: 0 and 0 on ", warning
    )
    assert "prompt 'p30', whose answer is '1110', however that was written (3 of 3 prompts)" in warning
    assert "`rollbook probe CONFIG --written 'Final: {answer}'`" in warning


def test_a_grader_that_raises_on_its_own_reference_is_told(own: Own) -> None:
    found = first_look(own_config(own, "return {}[answer]"), SUMS)
    assert lines(found, "graded") == ["reward_score: the right answer an error, an empty one an error, on 3 prompts"]
    (warning,) = lines(found, "warning")
    assert "fails on the right answer to prompt 'p30' ('1110'): KeyError: '1110'. Completions like it have no reward" in warning
    assert warning.endswith("Mend the grader, or the data")


def test_a_grader_that_raises_on_an_empty_answer_is_told(own: Own) -> None:
    (warning,) = lines(first_look(own_config(own, "return float(completion.split()[-1] == answer)"), SUMS), "warning")
    assert "fails on an empty answer to prompt 'p30': IndexError: list index out of range." in warning


def test_a_grader_that_returns_nothing_is_told(own: Own) -> None:
    (warning,) = lines(first_look(own_config(own, "completion == answer"), SUMS), "warning")
    assert "fails on the right answer to prompt 'p30' ('1110'): returned None, expected a finite number" in warning


def test_a_component_beside_others_may_give_less_for_more(own: Own) -> None:
    length = RewardComponent(grader=f"{own('def length(completion): return -len(completion)')}:length")
    both = first_look(RewardConfig(components=(RewardComponent(grader="exact_match"), length)), SUMS)
    assert lines(both, "graded")[1] == "reward_length: the right answer -4 ('1110'), an empty one 0, on 3 prompts"
    assert lines(both, "warning") == []
    (warning,) = lines(first_look(RewardConfig(components=(length,)), SUMS), "warning")
    assert "gives an empty answer more than the right one: 0 and -4 on" in warning


def test_a_grader_that_hangs_costs_a_first_look_its_time_and_no_more(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = own_config(own, "import time; time.sleep(60)")
    monkeypatch.setattr("pipeline.rewards.probing.first_look.SECONDS", 4)
    found = first_look(hangs.model_copy(update={"timeout_seconds": 0.5}), SUMS)
    (warning,) = lines(found, "warning")
    assert "fails on the right answer to prompt 'p30' ('1110'): no answer within 0.5 s" in warning
    monkeypatch.setattr("pipeline.rewards.probing.first_look.SECONDS", 1.5)
    (warning,) = lines(first_look(hangs, SUMS), "warning")
    assert "gave no answer within 1.5 s" in warning


def test_a_grader_that_needs_a_server_is_not_asked() -> None:
    judge = RewardComponent(grader="judge", args={"url": "http://localhost:1/v1", "model": "m", "template": "{completion}"})
    ((name, text),) = first_look(RewardConfig(components=(judge,)), SUMS)
    assert name == "graded" and text.startswith("reward_judge: not asked: every question goes to a server")
