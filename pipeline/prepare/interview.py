"""The questions of `rollbook init`: what an option says is not asked, and every question has a default where one can be told."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

from pipeline.common.device import has_gpu
from pipeline.common.errors import DataError, UserError
from pipeline.prepare import data
from pipeline.prepare.data import Questions, read_questions
from pipeline.prepare.draft import MATH_SYSTEM, OWN, PATTERN, Draft, PromptFile, Reward, Sizes
from pipeline.prepare.known_set import KnownSet
from pipeline.prepare.model import ModelChoice, find_model
from pipeline.prepare.recognize import recognized

TRAIN, HELDOUT = "train.jsonl", "heldout.jsonl"
TEMPLATE = "Question: {question}\nAnswer: "
SLACK = 64
"""Tokens that a chat template may add."""
LEAST_TOKENS = 8
Value = TypeVar("Value")


class Needed(NamedTuple):
    """Something that must be known."""

    option: str
    what: str
    given: str | None
    """By the option, or what can be told without it."""


class Ask(Protocol):
    """Asks the user, or takes the default."""

    def __call__(self, given: str | None, option: str, question: str, default: str | None, read: Callable[[str], Value]) -> Value:
        """An answer as `read` understands it.

        Raises:
            UserError: there is nobody to ask and no default, or `read` refuses what the option says.
        """

    def require(self, *needed: Needed) -> None:
        """
        Raises:
            UserError: names everything that is needed, cannot be told and that there is nobody to ask for.
        """

    def show(self, questions: Questions) -> None:
        """Let the user see the first rows."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What options say; None where nothing does."""

    directory: Path
    model: str | None = None
    data: str | None = None
    heldout: str | None = None
    question: str | None = None
    answer: str | None = None
    answer_pattern: str | None = None
    chat: bool | None = None
    template: str | None = None
    reward: str | None = None
    pattern: str | None = None
    algorithm: str | None = None
    size: str | None = None
    name: str | None = None
    set_aside: bool = False


@dataclass(frozen=True)
class Result:
    """The draft, and the rows of the files that it names and that are to be written."""

    draft: Draft
    files: dict[str, list[dict[str, Any]]]
    model: ModelChoice


def interview(wishes: Wishes, ask: Ask) -> Result:
    """Ask for what the wishes leave open.

    Raises:
        UserError: an answer that cannot be, or something that must be said and is not.
        DataError: names the file, and the row and column of the first problems.
    """
    ask.require(
        Needed("--model", "a model directory, or a hub name", wishes.model),
        Needed("--data", "a file of questions and answers", wishes.data),
    )
    model = ask(wishes.model, "--model", "Model: a directory, or a hub name", None, find_model)
    questions = ask(wishes.data, "--data", "Data: a file of questions and answers", None, _read)
    ask.show(questions)
    known = recognized(questions.columns, questions.rows)
    asked, answered = _columns(wishes, questions, known, ask)
    if known is not None and (asked, answered) != (known.question, known.answer):
        known = None
    answers = questions.texts(answered)
    worked = wishes.answer_pattern or (known.answer_pattern if known else None)
    worked = worked or (data.WORKED if data.looks_worked(answers) else None)
    chat = _chat(wishes, ask, model)
    template = ask(wishes.template, "--template", "Text given to the model", "{question}" if chat else TEMPLATE, _template)
    reward, own = ask(
        wishes.reward, "--reward", "Reward: exact, math, regex or own", _likely(answers, worked, known, chat), _reward
    )
    pattern = ask(wishes.pattern, "--pattern", "What finds the answer", PATTERN, _regex) if reward == "regex" else PATTERN
    algorithm = ask(wishes.algorithm, "--algorithm", "Algorithm", "rec-oneside-nois", _algorithm)
    device = ask(wishes.size, "--size", "Sizes: cpu or gpu", "gpu" if has_gpu() else "cpu", _one_of(("cpu", "gpu"), "size"))

    set_aside = wishes.set_aside or (known is not None and known.set_aside)
    transcript = known is not None and known.transcript
    source = PromptFile(_seen_from(wishes.directory, questions.path), asked, answered, worked, set_aside, transcript)
    train, heldout, files = _sources(wishes, questions, source)
    texts = [template.replace("{question}", text) for text in questions.texts(asked)]
    draft = Draft(
        name=_name(wishes),
        model=_seen_from(wishes.directory, Path(model.path)) if model.files else model.path,
        small_model=model.is_small,
        train=train,
        heldout=heldout,
        chat=chat,
        system=MATH_SYSTEM if chat and reward == "math" else None,
        template=template,
        reward=reward,
        pattern=pattern,
        own=own,
        algorithm=algorithm,
        gpu=device == "gpu",
        sizes=_sizes(device, len(files.get(TRAIN, questions.rows)), _room(model, texts, chat)),
        known=known,
    )
    return Result(draft, files, model)


def _columns(wishes: Wishes, questions: Questions, known: KnownSet | None, ask: Ask) -> tuple[str, str]:
    """The columns of questions and of answers: said, of a set that is known, guessed by their names, or what is left beside the
    other."""
    column = _column_of(questions)
    if known is not None and wishes.question in (None, known.question) and wishes.answer in (None, known.answer):
        found = f"{known.name} by its columns"
        return (
            ask(wishes.question, "--question", f"Column of the questions ({found})", known.question, column),
            ask(wishes.answer, "--answer", f"Column of the answers ({found})", known.answer, column),
        )
    _refuse_together(column, {"--question": wishes.question, "--answer": wishes.answer})
    there = f"of {', '.join(questions.columns)}"
    of_questions = wishes.question or questions.guess(data.QUESTIONS, but=wishes.answer)
    of_answers = wishes.answer or questions.guess(data.ANSWERS, but=of_questions)
    of_questions = of_questions or questions.only_other(of_answers)
    ask.require(
        Needed("--question", f"the column of the questions, {there}", of_questions),
        Needed("--answer", f"the column of the answers, {there}", of_answers or questions.only_other(of_questions)),
    )
    asked = ask(wishes.question, "--question", f"Column of the questions, {there}", of_questions, column)
    guess = questions.guess(data.ANSWERS, but=asked) or questions.only_other(asked)
    return asked, ask(wishes.answer, "--answer", f"Column of the answers, {there}", guess, column)


def _column_of(questions: Questions) -> Callable[[str], str]:
    """A column, or a dotted name that leads into one."""
    column = _one_of(questions.columns, f"column in {questions.path}")

    def read(text: str) -> str:
        root = text.partition(".")[0]
        if text not in questions.columns and root in questions.columns and not questions.texts(text):
            raise UserError(f"no row of {questions.path} has anything at {text!r}")
        return text if root in questions.columns else column(text)

    return read


def _refuse_together(column: Callable[[str], str], given: dict[str, str | None]) -> None:
    """
    Raises:
        UserError: names every option that says no column.
    """
    problems = []
    for option, name in given.items():
        try:
            column(name) if name is not None else None
        except UserError as error:
            problems.append(f"{option}: {error}")
    if problems:
        raise UserError("; ".join(problems))


def _chat(wishes: Wishes, ask: Ask, model: ModelChoice) -> bool:
    if wishes.chat is None and not model.has_chat_template:
        return False
    if wishes.chat and model.files and not model.has_chat_template:
        raise UserError(f"--chat: the tokenizer of {model.path} has no chat template. Use --template instead")
    given = None if wishes.chat is None else ("yes" if wishes.chat else "no")
    default = "no" if wishes.template else "yes"
    return ask(given, "--chat", "Use the model's chat template: yes or no", default, _one_of(("yes", "no"), "answer")) == "yes"


def _sources(
    wishes: Wishes, questions: Questions, source: PromptFile
) -> tuple[PromptFile, PromptFile, dict[str, list[dict[str, Any]]]]:
    """Where training and held-out questions are read from, and what must be written for that."""
    if questions.bad and not source.set_aside:
        first = questions.bad[0]
        raise DataError(
            f"{questions.path}, {questions.unit} {first.number}: {first.reasons}. "
            f"{len(questions.bad)} rows cannot be read; mend them, or go on without them: --set-aside"
        )
    here = replace(source, path=TRAIN)
    there = replace(source, path=HELDOUT)
    if wishes.heldout is None:
        trained, held = data.divide(questions, source.question)
        _refuse_own_input(wishes.directory, [TRAIN, HELDOUT], [questions.path])
        return here, there, {TRAIN: trained, HELDOUT: held}
    files = {}
    judged = _read(wishes.heldout)
    for wanted in (source.question, source.answer):
        _column_of(judged)(wanted)
    if questions.path.suffix not in data.READABLE:
        files[TRAIN] = questions.rows
    if judged.path.suffix not in data.READABLE:
        files[HELDOUT] = judged.rows
    _refuse_own_input(wishes.directory, list(files), [questions.path, judged.path])
    path = _seen_from(wishes.directory, judged.path)
    other = there if HELDOUT in files else replace(source, path=path)
    return here if TRAIN in files else source, other, files


def _refuse_own_input(directory: Path, written: Sequence[str], read: Sequence[Path]) -> None:
    """Refuse to replace a file of the user's by a part of it, even with --force."""
    for name in written:
        for path in read:
            if (directory / name).resolve() == path.resolve():
                raise UserError(f"{path}: is read, and a part of it would be written in its place. Choose another directory")


def _room(model: ModelChoice, texts: Sequence[str], chat: bool) -> int | None:
    """Tokens left for a completion after the longest prompt, if that can be told.

    Raises:
        UserError: hardly any.
    """
    context, longest = model.context, model.longest(texts)
    if context is None or longest is None:
        return None
    room = context - longest - (SLACK if chat else 0)
    if room < LEAST_TOKENS:
        raise UserError(
            f"the longest prompt has {longest} tokens, and {model.path} takes {context} with the completion. "
            "Remove the longest questions, or shorten --template"
        )
    return room


def _sizes(device: str, there: int, room: int | None) -> Sizes:
    gpu = device == "gpu"
    wanted = 1024 if gpu else 128
    return Sizes(
        iterations=10 if gpu else 3,
        prompts=min(256 if gpu else 64, there),
        samples=8,
        max_tokens=wanted if room is None else min(wanted, room),
        epochs=2,
        heldout=None if gpu else 64,
    )


def _name(wishes: Wishes) -> str:
    if wishes.name is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", wishes.name):
            raise UserError(f"--name {wishes.name}: expected letters, digits, '.', '_' and '-'")
        return wishes.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", wishes.directory.resolve().name).strip("-._") or "run"


def _read(path: str) -> Questions:
    return read_questions(Path(os.path.expanduser(path)))


def _seen_from(directory: Path, path: Path) -> str:
    """A path as it is written in a config that is used in `directory`."""
    here, there = directory.resolve(), path.resolve()
    if there.is_relative_to(here):
        return str(there.relative_to(here))
    return os.path.relpath(there, here) if here == Path.cwd() and not path.is_absolute() else str(there)


def _one_of(names: Sequence[str], what: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text in names:
            return text
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
        raise UserError(f"no {what} {text!r}; " + (f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names)}"))

    return read


def _template(text: str) -> str:
    if "{question}" not in text:
        raise UserError(f"{text!r}: has no {{question}} in it, where the question goes. Spaces need quotes: 'Q: {{question}} A:'")
    return text.replace("\\n", "\n")


def _likely(answers: Sequence[str], worked: str | None, known: KnownSet | None, chat: bool) -> str:
    if known is not None and (known.reward == "own" or chat):
        return known.reward
    numeric = worked is not None or data.looks_numeric(answers)
    return ("math" if chat else "regex") if numeric else "exact"


def _reward(text: str) -> tuple[Reward, str]:
    """
    >>> _reward("exact"), _reward("mine:score")
    (('exact', 'reward:score'), ('own', 'mine:score'))
    """
    for kind in get_args(Reward):
        if text == kind:
            return kind, OWN
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        raise UserError(f"no reward {text!r}; there is exact, math, regex, own, or a function of yours as module:function")
    return "own", text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"{text!r}: not a regular expression: {error}") from None
    return text


def _algorithm(text: str) -> str:
    from pipeline.algorithms import ALGORITHMS

    if text not in ALGORITHMS:
        near = difflib.get_close_matches(text, ALGORITHMS, n=1, cutoff=0.5)
        raise UserError(f"no algorithm {text!r}; " + (f"did you mean {near[0]}?" if near else "`rollbook algorithms` lists them"))
    return text
