"""Well-known data sets are told by their columns, and their rows become prompts. Rows are made up; columns are the sets' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.data import PromptSource
from pipeline.prepare.recognize import known_sets, recognized
from pipeline.sources.mixing import load

Rows = list[dict[str, Any]]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(text: str, answer: str) -> list[dict[str, str]]:
    return [*user(text), {"role": "assistant", "content": answer}]


def numina(**more: Any) -> dict[str, Any]:
    kinds = {
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "problem_is_valid": "Yes",
        "solution_is_valid": "Yes",
    }
    return {
        "problem": "1+1?",
        "solution": "It is $2$.",
        "answer": "2",
        **kinds,
        "source": "olympiads",
        "synthetic": False,
        **more,
    }


def openr1(**more: Any) -> dict[str, Any]:
    kinds = {"problem_type": "Algebra", "question_type": "math-word-problem", "source": "cn_k12", "uuid": "9b1e"}
    lists = {"generations": ["<think>…"], "correctness_math_verify": [True], "correctness_llama": None, "correctness_count": 1}
    more = {"messages": chat("1+1?", "2"), "is_reasoning_complete": [True], "finish_reasons": None, **more}
    return {"problem": "1+1?", "solution": "It is $2$.", "answer": "2", **kinds, **lists, **more}


def verl(text: str, truth: str) -> dict[str, Any]:
    model = {"ground_truth": truth, "style": "rule-lighteval/MATH_v2"}
    return {
        "data_source": "math_dapo",
        "prompt": user(text),
        "ability": "MATH",
        "reward_model": model,
        "extra_info": {"index": "9a"},
    }


def tulu(text: str, truth: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": user(text),
        "ground_truth": truth,
        "dataset": "gsm8k",
        "constraint_type": None,
        "constraint": None,
        **more,
    }


def feedback(text: str, answer: str) -> dict[str, Any]:
    pair = {"chosen": chat(text, answer), "rejected": chat(text, "No."), "messages": chat(text, answer)}
    return {"prompt": text, "prompt_id": "ab01", **pair, "score_chosen": 8.0, "score_rejected": 3.5}


def apps(text: str, tests: str) -> dict[str, Any]:
    about = {"difficulty": "interview", "url": "https://example.org/1", "starter_code": ""}
    return {"problem_id": 1, "question": text, "solutions": '["print(2)"]', "input_output": tests, **about}


def dialogue(*said: str) -> str:
    speakers = ("Human", "Assistant") * len(said)
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in zip(speakers, said, strict=False))


TESTS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
POST = "SUBREDDIT: r/AskReddit\n\nTITLE: A\n\nPOST: {}\n\nTL;DR:"
FRACTION = "Half: $\\boxed{\\frac{1}{2}}$."
SETS: dict[str, tuple[Rows, list[tuple[str, str]]]] = {
    "GSM8K": (
        [{"question": "1+1?", "answer": "1+1 = <<1+1=2>>2\n#### 2"}, {"question": "2+2?", "answer": "So 4.\n#### 4"}],
        [("1+1?", "2"), ("2+2?", "4")],
    ),
    "MATH": (
        [
            {"problem": "Half?", "level": "Level 1", "type": "Algebra", "solution": FRACTION},
            {"problem": "Two?", "level": "Level 5", "type": "Geometry", "solution": "First $\\boxed{1}$, then $\\boxed{2}$."},
        ],
        [("Half?", "\\frac{1}{2}"), ("Two?", "2")],
    ),
    "MATH-500": (
        [
            {
                "problem": f"{n}?",
                "solution": "…",
                "answer": str(n),
                "subject": "Algebra",
                "level": 2,
                "unique_id": f"test/{n}.json",
            }
            for n in (1, 2)
        ],
        [("1?", "1"), ("2?", "2")],
    ),
    "DAPO-Math-17k": (
        [verl("Solve: 1+1", "2"), verl("Solve: 2+2", "4"), verl("Solve: 2+2", "4")],
        [("Solve: 1+1", "2"), ("Solve: 2+2", "4")],
    ),
    "DeepScaleR": (
        [{"problem": "1+1?", "answer": "2", "solution": "…"}, {"problem": "2+2?", "answer": "4", "solution": ""}],
        [("1+1?", "2"), ("2+2?", "4")],
    ),
    "OpenR1-Math": ([openr1(), openr1(problem="2+2?", answer="4")], [("1+1?", "2"), ("2+2?", "4")]),
    "NuminaMath-1.5": ([numina(), numina(problem="2+2?", answer="4")], [("1+1?", "2"), ("2+2?", "4")]),
    "NuminaMath-CoT": (
        [
            {"source": "cn_k12", "problem": "Half?", "solution": FRACTION, "messages": chat("Half?", FRACTION)},
            {"source": "olympiads", "problem": "Show it.", "solution": "It is so.", "messages": chat("Show it.", "It is so.")},
            {"source": "olympiads", "problem": "Two?", "solution": "$\\boxed{2}$", "messages": chat("Two?", "2")},
        ],
        [("Half?", "\\frac{1}{2}"), ("Two?", "2")],
    ),
    "Big-Math": (
        [
            {
                "problem": f"{n}?",
                "answer": str(n),
                "source": "orca_math",
                "domain": ["Mathematics -> Algebra"],
                "llama8b_solve_rate": 0.5,
            }
            for n in (1, 2)
        ],
        [("1?", "1"), ("2?", "2")],
    ),
    "Tülu 3 RLVR": (
        [tulu("1+1?", "2"), tulu("Say no.", '{"func_name": "f"}', dataset="ifeval", constraint="In lower case.")],
        [("1+1?", "2"), ("Say no.", '{"func_name": "f"}')],
    ),
    "UltraFeedback": ([feedback("Why?", "So."), feedback("Who?", "I.")], [("Why?", "So."), ("Who?", "I.")]),
    "hh-rlhf": (
        [
            {"chosen": dialogue("Hi", "Hello.", "Why?", "So."), "rejected": dialogue("Hi", "Hello.", "Why?", "No.")},
            {"chosen": dialogue("Who?", "I."), "rejected": dialogue("Who?", "You.")},
        ],
        [("Why?", "So."), ("Who?", "I.")],
    ),
    "TL;DR": (
        [{"prompt": POST.format(text), "completion": f" {text}."} for text in "ab"],
        [(POST.format(text), f" {text}.") for text in "ab"],
    ),
    "TL;DR (labels)": (
        [{"prompt": POST.format(text), "label": f"{text}."} for text in "ab"],
        [(POST.format(text), f"{text}.") for text in "ab"],
    ),
    "APPS": ([apps("Add.", TESTS), apps("No tests.", ""), apps("Take.", TESTS)], [("Add.", TESTS), ("Take.", TESTS)]),
}


def test_every_set_has_rows_here() -> None:
    assert set(SETS) == set(known_sets())


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_known_by_its_columns_and_its_rows_are_prompts(name: str, tmp_path: Path) -> None:
    rows, prompts = SETS[name]
    known = recognized(list(rows[0]), rows)
    assert known is not None and known.name == name
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"question": known.question, "answer": known.answer, "answer_pattern": known.answer_pattern}
    bad_rows = "set_aside" if known.set_aside else "refuse"
    source = PromptSource.model_validate({"path": str(file), **settings, "transcript": known.transcript, "bad_rows": bad_rows})
    assert load(source).good.select("question", "answer").rows() == prompts


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1+1?", "answer": "2"},
        {"prompt": "a", "completion": "b"},
        {"problem": "a", "level": "1", "type": "b", "solution": "no box"},
        {"chosen": "a", "rejected": "b"},
    ],
)
def test_rows_of_ones_own_are_no_known_set(row: dict[str, Any]) -> None:
    assert recognized(list(row), [row]) is None
