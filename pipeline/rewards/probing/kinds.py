"""Kinds of answers that graders are asked about. Each is one value in NOTHING or EVERYTHING: what it is called, and its texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Literal

from pipeline.rewards.probing.dresses import BOX, Dress
from pipeline.rewards.probing.rows import ProbeRow

Counts = Literal["any", "all", "best"]


@dataclass(frozen=True, slots=True)
class Offer:
    """One completion that a grader is asked about."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of all rows when the answers of one are made."""

    home: Dress
    """The way of writing an answer down that earns most."""
    forms: tuple[Dress, ...]
    """It, and the plain one if that earns too."""
    others: Mapping[str, tuple[str, ...]]
    """Answers of other rows, by the row's name."""
    frequent: str | None
    """The most frequent answer of all prompts, if one is there twice."""

    def written(self, texts: Iterable[str]) -> Iterator[Offer]:
        """Texts as answers, in every form."""
        for text in texts:
            yield from (Offer(form.around(text)) for form in self.forms)


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """A kind of answers."""

    name: str
    offers: Callable[[ProbeRow, Setting], Iterable[Offer]]
    """Of a row; none where the kind does not apply to it."""
    counts: Counts = "any"
    """A row's answers earn if any of them does, or if all do. best: texts are counted over rows, and the best one is told."""


def _empty(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    yield from (Offer(text) for text in ("", " \n", setting.home.around("")))


def _question(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    question = str(row.prompt["question"])
    yield Offer(question)
    yield Offer(setting.home.around(question))


def _changed(change: Callable[[ProbeRow], Iterable[str]], row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    """The answer with a change, where that is another answer."""
    yield from setting.written(text for text in change(row) if text.strip() and not row.is_right(text))


def _next_to_it(row: ProbeRow) -> Iterator[str]:
    if (value := row.number) is not None:
        yield from (spelled(value + 1), spelled(value - 1))


def _swapped(row: ProbeRow) -> Iterator[str]:
    """Two digits that are neighbors and differ, the first such pair: of decimals the last ones may not count."""
    if (value := row.number) is not None:
        text = spelled(value)
        places = [i for i in range(len(text) - 1) if text[i].isdigit() and text[i + 1].isdigit() and text[i] != text[i + 1]]
        if places:
            first = places[0]
            yield text[:first] + text[first + 1] + text[first] + text[first + 2 :]


def _other_sign(row: ProbeRow) -> Iterator[str]:
    if value := row.number:
        yield spelled(-value)


def _other_size(row: ProbeRow) -> Iterator[str]:
    if value := row.number:
        yield from (spelled(value * 10), spelled(value / 10))


def _letter_off(row: ProbeRow) -> Iterator[str]:
    """The answer without its last letter, and with its first two changing places. Of words: 2+9 is 9+2."""
    text = row.answer.strip()
    if len(text) >= 4 and text.replace(" ", "").isalpha():
        yield from (text[:-1], text[1] + text[0] + text[2:])


def _of_another(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    yield from setting.written(setting.others[row.name][:1])


def _small_numbers(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    if row.number is not None:
        numbers = [str(n) for n in range(101)]
        start = next(n for n in range(101) if not row.is_right(numbers[n]) and not row.is_right(numbers[n - 1]))
        turned = numbers[start:] + numbers[:start]  # so that the answer is neither the first nor the last
        yield Offer(" ".join(turned))
        yield Offer(setting.home.around(", ".join(turned)))


def _lists(row: ProbeRow, setting: Setting) -> Iterator[list[str]]:
    """Five answers, the right one among them at the first place, in the middle, and at the last."""
    value, others = row.number, list(setting.others[row.name])
    wrong = [spelled(value + step) for step in (-2, -1, 1, 2)] if value is not None else others[:4]
    if len(wrong) >= 2:
        for place in (0, len(wrong) // 2, len(wrong)):
            yield [*wrong[:place], row.answer, *wrong[place:]]


def _in_one(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    yield from (Offer(setting.home.around(", ".join(answers))) for answers in _lists(row, setting))


def _one_by_one(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    yield from (Offer(" or ".join(map(setting.home.around, answers))) for answers in _lists(row, setting))


def _half(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    if row.solution is not None:
        yield Offer(row.solution[: len(row.solution) // 2], "length")


CONSTANTS = (
    *("0", "1", "2", "3", "5", "10", "-1", "100", "A", "B", "C", "D", "yes", "no", "true", "false", "none", "nan", "x", "7=7"),
    *("I do not know", "the answer", "[]", "()", "{}", "\\emptyset", "\\infty"),
)
"""Texts that a policy may find to earn something whatever it is asked."""


def _constant(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    yield from (Offer(setting.home.around(text)) for text in CONSTANTS if not row.is_right(text))


def _most_frequent(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    if setting.frequent is not None and not row.is_right(setting.frequent):
        yield from setting.written([setting.frequent])


NOTHING = (
    AnswerKind("nothing at all", _empty),
    AnswerKind("the question again", _question),
    AnswerKind("one more, one less", partial(_changed, _next_to_it)),
    AnswerKind("two digits swapped", partial(_changed, _swapped)),
    AnswerKind("the other sign", partial(_changed, _other_sign)),
    AnswerKind("ten times, a tenth", partial(_changed, _other_size)),
    AnswerKind("a letter off", partial(_changed, _letter_off)),
    AnswerKind("another question's answer", _of_another),
    AnswerKind("all numbers to 100", _small_numbers),
    AnswerKind("five answers in one", _in_one, counts="all"),
    AnswerKind("five answers, each marked", _one_by_one, counts="all"),
    AnswerKind("half of a solution", _half),
    AnswerKind("one text for all questions", _constant, counts="best"),
    AnswerKind("the most frequent answer", _most_frequent),
)
"""Answers that should earn nothing."""


def dressed(dress: Dress) -> AnswerKind:
    """The right answer, written down in one way; plain, the reference itself."""
    return AnswerKind(dress.name, lambda row, setting: [Offer(row.reference if dress.is_plain else dress.around(row.answer))])


def _in_dollars(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    home = setting.home
    yield Offer(f"${home.around(row.answer)}$" if home == BOX else home.around(f"${row.answer.strip('$')}$"))


def _with_thousands(row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    value = row.number
    if value is not None and abs(value) >= 1000 and f"{value:,f}" != row.answer.strip():
        yield Offer(setting.home.around(f"{value:,f}"))


def _surrounded(before: str, after: str, row: ProbeRow, setting: Setting) -> Iterator[Offer]:
    text = setting.home.around(row.answer)
    if not after.strip() or not text.endswith(after):
        yield Offer(before + text + after)


THOUGHT = "<think>\nLet me work it out, step by step.\n</think>\n\n"
EVERYTHING = (
    AnswerKind("in dollar signs", _in_dollars),
    AnswerKind("with a period", partial(_surrounded, "", ".")),
    AnswerKind("before a clause", partial(_surrounded, "", ", which was to be found.")),
    AnswerKind("with commas between thousands", _with_thousands),
    AnswerKind("behind a sentence", partial(_surrounded, "Let me work it out, step by step.\n", "")),
    AnswerKind("behind a thought", partial(_surrounded, THOUGHT, "")),
    AnswerKind("with space around", partial(_surrounded, "\n ", " \n")),
)
"""The right answer in the dress that earns most, with what models write around it. Dresses themselves are kinds too."""


def spelled(value: Decimal) -> str:
    """A number as people write it.

    >>> spelled(Decimal("18.50")), spelled(Decimal("1E+2"))
    ('18.5', '100')
    """
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
