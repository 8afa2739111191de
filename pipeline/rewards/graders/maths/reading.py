"""Where a completion's one answer stands. Every step is linear in the text, and no library sees more than the answer.

The places, in their order; the first that a completion has is the only one that is read:

    box      the last \\boxed{…} that is not empty
    tag      the last <answer>…</answer>
    marker   the last line that begins with ####
    phrase   what stands behind the last "the answer is", or "answer:"
    whole    the completion itself, where it is nothing but a value
    number   the last number of the last sentence, or its last expression between dollar signs

With `extract` what its last match captures stands for the completion, and is read as a whole if it marks no answer itself.
The first four are marks. A completion that was cut off is judged only by those.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.rewards.graders.maths.tidy import closing
from pipeline.rewards.graders.maths.units import SCALES, unit_of
from pipeline.rewards.graders.text import last_captured

BOX, TAG, MARKER, PHRASE, WHOLE, NUMBER, EXTRACT, NOWHERE = "box", "tag", "marker", "phrase", "whole", "number", "extract", "none"
MARKS = (BOX, TAG, MARKER, PHRASE)

_LONGEST_SENTENCE = 400
_LONGEST_WHOLE = 400
_SHORTEST_QUESTION = 20
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s{0,3}")
_TAGS = ("answer", "final_answer", "final-answer", "finalanswer")
_TAG_OPEN = re.compile(r"<(" + "|".join(_TAGS) + r")>", re.IGNORECASE)
_MARKER = re.compile(r"^[ \t]{0,3}####[ \t]*(?=[-+−(\\$€£¥.\d])([^\n]*)", re.MULTILINE)
_IS = r"\b(?:is|was|equals|comes to|(?:would|should|must|will) be)\b(?! not| n[o']t)(?: therefore| thus| then)?:?"
_PHRASE = re.compile(
    r"(?<![a-z])(?:final |correct |right )?answer(?: to (?:this|the) (?:question|problem))?"
    rf"(?:\*\*)?\s{{0,2}}(?:{_IS}|:|=|\*\*(?=\s{{0,3}}\n))(?:\*\*)?\s{{0,3}}(?=\S)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=[\"')*]{0,3}(?:\s|$))|\n")
_CLAUSE = re.compile(
    r",?\s(?:which|because|since|so|as|where|for|when|i\.e|that is|hence|therefore)\b|[.;]\s|\s\(|,\s(?:not|and|but)\b|\n"
)


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, and where it stood."""

    place: str
    text: str | None
    """None where nothing can be read at the place, such as in a box that is not closed."""


def find(
    completion: str,
    *,
    extract: str | None = None,
    question: str | None = None,
    finish_reason: str | None = None,
    is_value: Callable[[str], bool],
) -> Found:
    """The answer of a completion.

    Args:
        extract: regular expression; the completion is what its last match captures.
        question: an echo of it is no answer.
        finish_reason: "length" if the completion was cut off, "stop" if it ended by itself, None if nobody knows.
        is_value: whether a text is a value and no sentence.
    """
    if extract is not None:
        captured = last_captured(extract, completion)
        if captured is None:
            return Found(NOWHERE, None)
        inner = _boxed(captured) or _tagged(captured, closed=True) or _phrase(captured, None)
        return Found(EXTRACT, inner.text if inner is not None else captured.strip())
    text = _spoken(_without_echo(completion, question))
    cut = finish_reason == "length"
    found = _boxed(text) or _tagged(text, closed=finish_reason != "stop") or _marker(text, cut) or _phrase(text, finish_reason)
    if found is not None:
        return found
    if cut or text is not (spoken := _spoken(text)) or _is_thinking(text):
        return Found(NOWHERE, None)
    if len(spoken) <= _LONGEST_WHOLE and is_value(spoken.strip()):
        return Found(WHOLE, spoken.strip())
    return _last_number(spoken, finish_reason)


def _spoken(text: str) -> str:
    """What stands behind the last thought."""
    for end in ("</think>", "</thinking>", "</thought>", "</reasoning>"):
        text = text[text.rfind(end) + len(end) :] if end in text else text
    return text


def _is_thinking(text: str) -> bool:
    """Whether a thought began and did not end."""
    return any(start in text for start in ("<think>", "<thinking>", "<thought>", "<reasoning>"))


def _without_echo(completion: str, question: str | None) -> str:
    """The completion without the question that it repeats at its beginning, or a part of it."""
    asked = (question or "").strip()
    text = completion.lstrip()
    if len(asked) < _SHORTEST_QUESTION or not text:
        return completion
    if text.startswith(asked):
        return text[len(asked) :]
    return "" if len(text.rstrip()) >= _SHORTEST_QUESTION and text.rstrip() in asked else completion


def _boxed(text: str) -> Found | None:
    """The last box. One that is not closed is the last all the same, and cannot be read."""
    for match in reversed(list(_BOX.finditer(text))):
        if text.startswith("{}", match.end()):
            continue
        if text.startswith("{", match.end()):
            end = closing(text, match.end())
            if end is None:
                return Found(BOX, None)
            inner = text[match.end() + 1 : end].strip()
        else:
            bare = re.match(r"[-+]?\d[\d.,]*|[A-Za-z]\b", text[match.end() : match.end() + 50])
            inner = bare[0].rstrip(".,") if bare else ""
        if inner:
            return Found(BOX, inner)
    return None


def _tagged(text: str, *, closed: bool) -> Found | None:
    """The last tag. One that is open is read only of a completion that ended by itself: a stop text may have closed it."""
    lowered = text.lower()
    for match in reversed(list(_TAG_OPEN.finditer(text))):
        end = lowered.find(f"</{match[1].lower()}>", match.end())
        if end < 0 and closed:
            return Found(TAG, None)
        inner = text[match.end() : end if end >= 0 else len(text)].strip()
        if inner and inner != "...":
            announced = _phrase(inner, "stop")
            return Found(TAG, inner if announced is None else announced.text)
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0] if matches else None


def _marker(text: str, cut: bool) -> Found | None:
    found = _last(_MARKER, text)
    if found is None or (cut and found.end() == len(text)):
        return None
    return Found(MARKER, found[1].strip()[:_LONGEST_SENTENCE])


def _phrase(text: str, finish_reason: str | None) -> Found | None:
    """What is announced as the answer, up to the end of its sentence or clause. One that may be cut off is none."""
    found = _last(_PHRASE, text)
    if found is None:
        return None
    before = text[max(0, found.start() - 100) : found.start()]
    if _DENIED.search(re.split(r"[.;:,!?\n]", before)[-1]):
        return Found(PHRASE, None)
    rest = text[found.end() : found.end() + _LONGEST_SENTENCE]
    end = _SENTENCE_END.search(rest)
    if end is None and finish_reason == "length":
        return None
    sentence = rest[: end.start()] if end else rest
    if rest[len(sentence) : len(sentence) + 1] == "?":
        return None
    if rest[len(sentence) : len(sentence) + 1] == "!":
        sentence += "!"
    clause = _CLAUSE.split(sentence, maxsplit=1)[0] if not sentence.startswith("(") else sentence
    return Found(PHRASE, clause.strip())


_NUMBER = r"(?:\d+(?:[.,:]\d+|[ ]\d{3}(?!\d))*|\.\d+)(?:[eE][-+]?\d+)?"
_OPERAND = rf"(?:{_NUMBER}(?:\s\d+/\d+)?|\\[a-zA-Z]+|(?<![a-zA-Z'])[a-zA-Z](?![a-zA-Z'])|[()\[\]{{}}|$€£¥₹%!°²³^_])"
_OPERATOR = r"(?:[-+*/=<>≤≥≠≈×·÷±−–]|\\(?:ne|neq|le|ge|leq|geq|times|cdot|approx|pm)(?![a-zA-Z]))"
_RUN = re.compile(rf"(?:{_OPERATOR}\s?){{0,3}}{_OPERAND}+(?:(?:\s?{_OPERATOR}\s?){{1,3}}{_OPERAND}+)*")
_FOLLOWS = re.compile(r"\s?([a-zA-Z%°]+(?:\^?[23]|[²³])?(?:/[a-zA-Z]+)?)")
_DOLLARS = re.compile(
    r"(?<!\\)(?:\$\$(?P<two>[^$]+)\$\$|\$(?=\S)(?P<one>(?:[^$\\]|\\.)+?)(?<=[^\s=])\$(?!\d))|"
    r"\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\]"
)
_STEP = re.compile(r"<<[^<>]{0,200}>>")
"""A calculator's note in a solution: 9 * 2 = <<9*2=18>>18."""
_TITLES = "mr mrs ms dr st vs etc approx lbs lb oz ft hrs hr mins min sec no e.g i.e"
_ABBREVIATIONS = frozenset(_TITLES.split())
_DENIED = re.compile(
    r"(?:\b(?:not|never|nor|neither|cannot|without|except|unless|either)\b|n't\b|≠|\\neq?\b|!=)(?:\s+\S+){0,3}\s*$|"
    r"\b(?:than|at least|at most|up to|instead of|no longer|between)\s*\W?$|"
    r"\b(?:not true|not the case|wrong|incorrect|false|doubt|what if|n't (?:think|believe)|not (?:think|believe))\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\s{0,2}\w{0,20}\s{0,2}(?:(?:is|was|are|would be)\s+(?:not|wrong|incorrect|false|never)|(?:is|was|are)n't|can(?:not|'t))\b|"
    r"\s{1,2}(?:or|and|to)\s[-$]?\d",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\d[^\s\w]{0,2}\s(?:or|to|and)\s\W?$|(?<![\w.])\d+\s\W?$|\d[,;]\s-?\d[\d.]*[,;]\s\W?$")


def _last_number(text: str, finish_reason: str | None) -> Found:
    """The last number of the last sentence, if that says something and is whole."""
    tail = text.rstrip()[-_LONGEST_SENTENCE:]
    start = _last_sentence(tail)
    sentence = _STEP.sub("", tail[start:]).strip()
    is_only = start == 0 and len(text.rstrip()) <= _LONGEST_SENTENCE
    if not sentence or sentence.endswith("?"):
        return Found(NOWHERE, None)
    runs = [match for match in _RUN.finditer(sentence) if re.search(r"\d", match[0])]
    spans = list(_DOLLARS.finditer(sentence))
    if not runs and not spans:
        return Found(NOWHERE, None)
    if spans and (not runs or spans[-1].end() >= runs[-1].start()):
        chosen, answer = spans[-1], next(group for group in spans[-1].groups() if group)
    else:
        chosen = runs[-1]
        answer = _counted(_shorn(chosen[0]), sentence[chosen.end() :])
    before, after = sentence[: chosen.start()], sentence[chosen.end() :]
    if not _is_finished(sentence, after, is_only, len(runs), finish_reason):
        return Found(NOWHERE, None)
    clause = re.split(r"[;:]|,\s|\bbut\b", before)[-1]
    if _DENIED.search(clause) or _DENIED_AFTER.match(after) or _JOINED.search(before[-20:]):
        return Found(NUMBER, None)
    return Found(NUMBER, answer)


def _last_sentence(text: str) -> int:
    """Where the last sentence begins that says anything."""
    for match in reversed(list(_SENTENCE_END.finditer(text))):
        word = re.search(r"[\w.]*$", text[max(0, match.start() - 10) : match.start()])
        if word is not None and word[0].lower() in _ABBREVIATIONS and match[0] == ".":
            continue
        if text[match.end() :].strip("\"')*. \n"):
            return match.end()
    return 0


def _is_finished(sentence: str, after: str, is_only: bool, numbers: int, finish_reason: str | None) -> bool:
    """Whether the sentence is whole.

    Where nobody knows why the completion ended, it must end as sentences do. Behind others it must also state its number: a
    sentence that computes it is a step, and the next may have been cut off.
    """
    if finish_reason == "stop":
        return True
    if "<<" in sentence:
        return False
    ends = re.search(r"[.!)\]}*|`\"'$]$", sentence) is not None
    if is_only:
        counted = numbers == 1 and "=" not in sentence and re.fullmatch(r"(?:\s?[^\W\d]+){0,2}", after) is not None
        return ends or not after or counted
    return ends and "=" not in sentence


def _shorn(run: str) -> str:
    """A run of signs without what punctuates the sentence; of a chain of equations its last side."""
    run = re.split(r"(?<![<>!])=", run)[-1].strip().rstrip(".,:;\"'*$([{").lstrip(",:;.*)]}\"'")
    for opening, ending in (("(", ")"), ("[", "]"), ("{", "}")):
        while run.count(ending) > run.count(opening) and run.endswith(ending):
            run = run[:-1]
        while run.count(opening) > run.count(ending) and run.startswith(opening):
            run = run[1:]
    return run.strip()


def _counted(run: str, rest: str) -> str:
    """A number with the word behind it where that is a unit or multiplies it."""
    match = _FOLLOWS.match(rest)
    if match is None or not run[-1:].isdigit():
        return run
    word = match[1]
    known = word.lower() in (*SCALES, "percent") or (len(word) > 1 and unit_of(word) is not None)
    return f"{run} {word}" if known else run
