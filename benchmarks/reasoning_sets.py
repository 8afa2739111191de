"""What reasoning-gym's data sets give for answers that solve nothing: measured through the grader.

    python benchmarks/reasoning_sets.py                    writes pipeline/rewards/graders/reasoning.json; 15 minutes on two cores
    python benchmarks/reasoning_sets.py --only countdown   prints the figures of some data sets and writes nothing

Each data set's items are made with the default configuration and one seed, taken through JSON as a prompts file takes them, and
graded: the item's own answer, another item's, none, words. Then constants: each of `CONSTANTS` and of the items' own answers is
given for every item, and the best is kept. What the scorer executes is seen by an audit hook of Python's. Items are made again
in the same process, and in processes with other hash seeds. Afterwards run `python docs/make.py`, which writes the table.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType
from typing import Any

from pipeline.rewards.graders import reasoning

FILE = Path(reasoning.__file__).with_suffix(".json")
ITEMS, SEED, AGAIN = 12, 7, 4
EXAMPLES = {
    "propositional_logic": "example_answer",
    "graph_color": "possible_answer",
    "rubiks_cube": "example_correct_answer",
}
"""Where items without an answer of their own have one."""
WORDS = "I do not know the answer."
MARKER = 73_193
SLOW = dict.fromkeys(("knight_swap", "sokoban", "intermediate_integration", "simple_integration"), 4)
"""Items of data sets that take seconds for each."""
FIRST, CHOSEN = 3, 6
LIMIT, SHORT = 4.0, 0.3
"""Seconds of this process that a score may take, and that of a constant; sympy needs minutes for some."""
CONSTANTS = (
    *("", "0", "1", "2", "3", "4", "5", "7", "10", "50", "100", "-1", "0.5", "1/2", "nan", "inf", "1e999", "(0, 0)"),
    *("True", "False", "yes", "no", "Yes", "No", "A", "B", "C", "D", "a", "Monday", "None", "null", "[]", "[[]]", "{}", "[0]"),
    *("6*4*1*1", "1 + 5 + 8 + 10", "24", "P ∨ ¬P", "(P → Q) ∨ (Q → P)", "P ∨ Q", "P → Q", "Q → P", "¬(P ∧ Q)"),
    *("nan + nani", "nan+0i", "nani", "LRUD" * 40, "0 days", "00:00:00", "12:00:00", "0 days, 12:00:00", "0 0\n0 0", WORDS),
)


class Watched(dict[str, Any]):
    """Metadata that knows which of it was needed."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.needed: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.needed.add(key)
        return super().__getitem__(key)


def graded(name: str, completion: str | None, item: Mapping[str, Any], limit: float = LIMIT) -> float:
    """The grader's score, 0 where it has none in time. None stands for a completion in which nothing was found."""
    extract = {"extract": r"(?!)"} if completion is None else {}
    given = copy.deepcopy(dict(item))
    try:
        with limited(limit):
            said = reasoning.reasoning_gym(completion or "", item["answer"], given, dataset=name, accept_weakness=True, **extract)
    except (ValueError, TooLate):
        return 0.0
    return float(said.score or 0.0)


class TooLate(BaseException):
    """Nothing inside catches it by name."""


@contextmanager
def limited(seconds: float = LIMIT) -> Iterator[None]:
    """At most so long, and told again where the scorer caught it."""

    def late(*_: object) -> None:
        raise TooLate

    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def solution(name: str, item: Mapping[str, Any]) -> str | None:
    """An answer that is right, if the item has one."""
    if item["answer"] is not None or name not in EXAMPLES:
        return item["answer"]
    found = item["metadata"][EXAMPLES[name]]
    return found if isinstance(found, str) else json.dumps(found)


def made(name: str, size: int) -> list[dict[str, Any]]:
    """Items as a file holds them."""
    import reasoning_gym

    items = list(reasoning_gym.create_dataset(name, seed=SEED, size=size))
    return list(json.loads(json.dumps(items, default=str)))


def digest(items: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]


def row(name: str) -> dict[str, Any]:
    """What is known of one data set."""
    items = made(name, SLOW.get(name, ITEMS))
    reasoning.scorer(name, "{}")  # some read word lists for seconds
    pairs = [(item, solution(name, item)) for item in items]
    solutions = [answer for _, answer in pairs if answer is not None]
    constant, scores = most_earned(name, items, {*CONSTANTS, *solutions})
    others = [next((text for text in solutions[i:] + solutions if text != right), None) for i, (_, right) in enumerate(pairs)]
    sentences = [(f"The answer is {right}.", item) for item, right in pairs if right is not None]
    return {
        "oracle": mean(graded(name, right, item) for item, right in pairs if right is not None),
        "wrong": mean(graded(name, text, item) for text, (item, _) in zip(others, pairs, strict=True) if text is not None),
        "empty": mean(graded(name, "", item) for item in items),
        "nothing": mean(graded(name, None, item) for item in items),
        "words": mean(graded(name, WORDS, item) for item in items),
        "sentence": mean(graded(name, text, item) for text, item in sentences),
        "constant": mean(scores),
        "constant_right": mean(right is not None and same(right, constant) for _, right in pairs),
        "constant_text": constant if len(constant) <= 40 else constant[:37] + "...",
        "without_answer": any(item["answer"] is None for item in items),
        "evaluates": sorted(evaluated(name, pairs[:5])),
        "needs": sorted(needed(name, pairs)),
        "unseeded": unseeded(name),
    }


def unseeded(name: str) -> bool:
    """Whether some item of two data sets with one seed differs: of 60, or of as many as half a second makes."""
    import reasoning_gym

    one, other = (reasoning_gym.create_dataset(name, seed=SEED, size=60) for _ in range(2))
    started = time.process_time()
    for number in range(60):
        if json.dumps(one[number], default=str) != json.dumps(other[number], default=str):
            return True
        if number >= AGAIN and time.process_time() - started > 0.5:
            break
    return False


def most_earned(name: str, items: list[dict[str, Any]], texts: Iterable[str]) -> tuple[str, list[float]]:
    """The text that earns most and its score for each item; of several such texts, the shortest. The first items choose some."""
    for some, left in ((items[:FIRST], CHOSEN), (items, 1)):
        scores = {text: [graded(name, text, item, SHORT) for item in some] for text in texts}
        texts = sorted(scores, key=lambda text: (-sum(scores[text]), len(text), text))[:left]
    return texts[0], scores[texts[0]]


def same(one: str, other: str) -> bool:
    return " ".join(one.casefold().split()) == " ".join(other.casefold().split())


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return round(sum(found) / len(found), 4) if found else None


def evaluated(name: str, pairs: list[tuple[dict[str, Any], str | None]]) -> set[str]:
    """Which texts the scorer executes as Python: the completion."""
    found = set()
    for item, right in pairs:
        tried = [str(MARKER), f"[{MARKER}]", f"[[{MARKER}]]", f"{MARKER} + 1", f"({right}) + {MARKER}", f"{right} + {MARKER}"]
        for text in tried:
            with executed() as constants:
                graded(name, text, item, SHORT)
            if MARKER in constants or str(MARKER) in constants:
                found.add("completion")
    return found


def needed(name: str, pairs: list[tuple[dict[str, Any], str | None]]) -> set[str]:
    """Keys of the metadata without which no item of this data set can be scored."""
    common: set[str] | None = None
    for item, right in pairs:
        watched = Watched(item["metadata"])
        scorer = reasoning.scorer(name, "{}")
        for text in (right, WORDS, "1", *(other for _, other in pairs[:3])):
            with suppress(Exception, TooLate), limited():
                scorer(answer=text, entry={**item, "metadata": watched})
        common = watched.needed if common is None else common & watched.needed
    return (common or set()) & set(pairs[0][0]["metadata"])


_listener: Callable[[CodeType], None] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listener is not None and event == "exec":
        _listener(arguments[0])


@contextmanager
def executed() -> Iterator[set[Any]]:
    """Constants of the code that is executed inside."""
    global _listener
    constants: set[Any] = set()
    _listener = lambda code: constants.update(_constants(code))  # noqa: E731
    try:
        yield constants
    finally:
        _listener = None


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _constants(value)
        elif isinstance(value, (int, str)):
            yield value


def names() -> list[str]:
    """All data sets but `composite`, which is made of others."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def digests(hash_seed: int, only: Iterable[str]) -> dict[str, str]:
    """Of each data set's first items, made in a process with this hash seed. The library prints, so the last line counts."""
    done = subprocess.run(
        [sys.executable, __file__, "--digests", "--only", *only],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(only: list[str]) -> None:
    """Measure some data sets and write the file, beside what it has of others."""
    library = importlib.metadata.version("reasoning_gym")
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    rows = kept["datasets"] if kept["library"] == library else {}
    for name in only:
        rows[name] = row(name)
        print(name, rows[name], file=sys.stderr, flush=True)
    one, other = digests(1, only), digests(2, only)
    for name in only:
        rows[name]["hash_seed"] = one[name] != other[name] and not rows[name]["unseeded"]
    about = {"library": library, "items": ITEMS, "seed": SEED, "command": "python benchmarks/reasoning_sets.py"}
    found = {**about, "datasets": dict(sorted(rows.items()))}
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.digests:
        print("\n" + json.dumps({name: digest(made(name, AGAIN)) for name in asked.only}))
        return
    sys.addaudithook(_hook)
    measure(asked.only or names())


if __name__ == "__main__":
    main()
