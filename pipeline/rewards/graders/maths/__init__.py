"""math_verify: 1 if the completion's one answer is the value that the reference is.

reading    where in a completion its answer stands
tidy       one notation for many
tokens     what the notation is made of
expressions, values    the value of one kind that it spells
evaluate, compare      whether two values are the same
library    Hugging Face's math-verify with its own behavior
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.rewards.graders.maths.compare import AnswerComparison
from pipeline.rewards.graders.maths.nodes import Quantity, Sequence, Value, Words
from pipeline.rewards.graders.maths.reading import MARKER, Found, find
from pipeline.rewards.graders.maths.tidy import tidy
from pipeline.rewards.graders.maths.values import LONGEST, plain, read, unlabelled
from pipeline.rewards.graders.text import compile_pattern, required
from pipeline.rewards.items import Score

TOLD = ("finish_reason",)
_LETTER = re.compile(r"(?:(?i:option|choice|answer)\s)?\(?([A-Ja-j])[).]?")
SHOWN = 120
"""Characters of an answer that a remark shows."""


def math_verify(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    extract: str | None = None,
    precision: int = 6,
    strict: bool = True,
    reading: Literal["one", "library"] = "one",
    finish_reason: str | None = None,
) -> float | Score:
    """1 if the completion's answer equals the reference, else 0. The remark says where it stood and what was read.

    One answer is read, from one place: the last box, an answer tag, a marked line or phrase, the completion itself, or its
    last number (`reading`). It is one value of one kind, and so is the reference. An answer that is no mathematics is
    compared as a text. docs/grading.md has the rules, each with its examples.

    Args:
        extract: regular expression; what its last match captures stands for the completion. No match scores 0.
        precision: decimal places to which numbers are compared if one of them is written as a decimal.
        strict: false: variables are matched by position, and sets may equal tuples.
        reading: library: math-verify chooses the answers and compares them, as it does by itself.

    Raises:
        ValueError: the prompt has no answer, or nothing can be read in it.
    """
    wanted = required(answer).strip()
    if reading == "library":
        from pipeline.rewards.graders.maths.library import verified

        return verified(completion, wanted, extract=extract, precision=precision, strict=strict)
    reference = _reference(wanted)
    if not tidy(reference[:2000]).strip("$ "):
        raise ValueError(f"math-verify reads no expression in the answer {wanted[:80]!r}")
    question = prompt.get("question")
    found = find(
        completion,
        extract=extract,
        question=question if isinstance(question, str) else None,
        finish_reason=finish_reason,
        is_value=lambda text: _is_value(text, reference),
    )
    if found.text is None:
        return Score(0.0, remark=found.place)
    right = same(reference, found.text, AnswerComparison(precision, strict))
    return Score(float(right), remark=f"{found.place}: {found.text[:SHOWN]}")


def same(reference: str, given: str, comparison: AnswerComparison) -> bool:
    """Whether a text spells the value that the reference spells.

    What has two readings is read as the other is: 100,200,300 is three numbers beside a list, and (A) 12 is A beside a letter.
    """
    if reference.strip() == given.strip():
        return True
    wanted, offered = _read(reference), _read(given)
    worded = isinstance(wanted, Words) or isinstance(offered, Words)
    if worded and max(len(reference), len(given)) <= LONGEST and plain(tidy(reference)) == plain(tidy(given)):
        return True
    if isinstance(wanted, Sequence) and isinstance(offered, Quantity):
        offered = read(given, as_list=True)
    elif isinstance(offered, Sequence) and isinstance(wanted, Quantity):
        wanted = read(reference, as_list=True)
    if comparison.same(wanted, offered):
        return True
    return _same_choice(reference, given, comparison)


def _same_choice(reference: str, given: str, comparison: AnswerComparison) -> bool:
    """Choices by letter: (A), A. and (A) 12 are A; beside a reference that is no letter, (A) 12 is 12."""
    letter = _LETTER.fullmatch(tidy(reference[:50]))
    if (labelled := unlabelled(given)) is not None:
        if letter is not None:
            return labelled[0] == letter[1].upper()
        return bool(labelled[1]) and comparison.same(_read(reference), read(labelled[1]))
    if letter is not None and (bare := _LETTER.fullmatch(tidy(given[:50]))) is not None:
        return letter[1] == bare[1] or ("(" in given + reference and letter[1].upper() == bare[1].upper())
    if (choice := unlabelled(reference)) is not None:
        return plain(given) == choice[0].casefold() or (bool(choice[1]) and comparison.same(read(choice[1]), read(given)))
    return False


@lru_cache(maxsize=1024)
def _read(text: str) -> Value:
    return read(text)


def _is_value(text: str, reference: str) -> bool:
    """Whether a whole completion is a value and no sentence, or the reference to the letter."""
    return not isinstance(_read(text), Words) or plain(text) == plain(reference) or unlabelled(text) is not None


@lru_cache(maxsize=1024)
def _reference(answer: str) -> str:
    """The answer in a prompt's answer, which may be a solution that ends with a box or a marked line."""
    found: Found = find(answer, finish_reason="stop", is_value=lambda _: True)
    marked = ("\\boxed" in answer) or found.place == MARKER or answer.startswith("<answer>")
    return found.text if marked and found.text is not None else answer


def check(*, extract: str | None = None, precision: int = 6, **_: object) -> None:
    if extract is not None:
        compile_pattern("extract", extract)
    if not -15 <= precision <= 30:
        raise UserError(f"args.precision: {precision}, expected decimal places between -15 and 30")


def prepare(**args: Any) -> None:
    math_verify("$\\sqrt{2}$", "1", {}, **args)
