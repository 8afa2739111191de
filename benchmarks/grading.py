"""False positives and negatives of `math_verify`, beside math-verify's own verdict on the same texts.

    python benchmarks/grading.py --data gsm8k/test.jsonl --out benchmarks/results/grading.json

On the references of GSM8K and their solutions: whole, cut at a random character, against another question's reference, and the
question in place of an answer. And on generated pairs of each kind of answer: `--pairs` right ones and as many wrong ones. A
completion that gives the reference and earns 0, or an error, is a false negative; one that does not and earns 1, a false
positive. Ends with 1 if one of either is above 0.2 % for ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grading_pairs import KINDS, dressed, pairs

from pipeline.rewards.graders.maths import math_verify
from pipeline.rewards.items import Score

MOST_PERCENT = 0.2
LONG = 16_000


@dataclass(frozen=True)
class Case:
    """A completion, and whether it gives the reference."""

    completion: str
    reference: str
    right: bool
    finish_reason: str | None = None


@dataclass
class Count:
    """What one reading made of a set of cases."""

    right: int = 0
    false_negatives: int = 0
    wrong: int = 0
    false_positives: int = 0
    errors: int = 0
    """Cases that it refused; of the right ones they are false negatives too."""
    milliseconds: float = 0.0
    """Processor time for each case."""

    def add(self, case: Case, score: float | None) -> None:
        self.errors += score is None
        if case.right:
            self.right += 1
            self.false_negatives += score != 1
        else:
            self.wrong += 1
            self.false_positives += score == 1

    @property
    def worst(self) -> float:
        """The larger of the two shares, in per cent."""
        return 100 * max(self.false_negatives / max(1, self.right), self.false_positives / max(1, self.wrong))


def ours(case: Case) -> float | None:
    said = math_verify(case.completion, case.reference, {}, finish_reason=case.finish_reason)
    return said.score if isinstance(said, Score) else said


def library(case: Case) -> float | None:
    try:
        said = math_verify(case.completion, case.reference, {}, reading="library")
    except ValueError:
        return None
    return said.score if isinstance(said, Score) else said


READINGS: dict[str, Callable[[Case], float | None]] = {"ours": ours, "library": library}


def gsm8k_sets(path: Path, seed: int) -> Iterator[tuple[str, list[Case]]]:
    """Named sets of cases from a file with lines {question, answer}."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    references = [row["answer"].partition("####")[2].strip() for row in rows]
    solutions = [row["answer"] for row in rows]
    bodies = [solution.partition("\n####")[0] for solution in solutions]
    drawn = random.Random(seed)
    cuts = [solution[: drawn.randrange(len(solution))] for solution in solutions]
    others = [*references[1:], references[0]]
    apart = [place for place, (a, b) in enumerate(zip(references, others, strict=True)) if a != b]
    yield "reference in a box", [Case(rf"It is \boxed{{{text}}}.", text, True) for text in references]
    yield "reference announced", [Case(f"The answer is {text}.", text, True) for text in references]
    yield "reference in another box", [Case(rf"\boxed{{{others[i]}}}", references[i], False) for i in apart]
    yield "whole solution", [Case(text, reference, True) for text, reference in zip(solutions, references, strict=True)]
    yield "solution of another question", [Case(solutions[i], others[i], False) for i in apart]
    yield "cut solution, known to be", [Case(c, r, False, "length") for c, r in zip(cuts, references, strict=True)]
    yield "cut solution, not known to be", [Case(c, r, False) for c, r in zip(cuts, references, strict=True)]
    yield (
        "question echoed",
        [Case(row["question"], reference, False, "stop") for row, reference in zip(rows, references, strict=True)],
    )
    boxed = [rf"{body} So it is \boxed{{{reference}}}" for body, reference in zip(bodies, references, strict=True)]
    yield (
        "another box after the reference's",
        [Case(rf"{boxed[i]}, or \boxed{{{others[i]}}}", references[i], False) for i in apart],
    )


def generated_sets(count: int, seed: int) -> Iterator[tuple[str, list[Case]]]:
    for kind in KINDS:
        drawn = random.Random(f"{kind}/dress/{seed}")
        cases = []
        for reference, right, wrong in pairs(kind, count, seed):
            cases += [Case(dressed(right, drawn), reference, True), Case(dressed(wrong, drawn), reference, False)]
        yield kind, cases


def counted(cases: list[Case], grade: Callable[[Case], float | None], show: int) -> Count:
    count, started = Count(), time.process_time()
    for case in cases:
        score = grade(case)
        before = count.false_negatives + count.false_positives
        count.add(case, score)
        if show and count.false_negatives + count.false_positives > before and before < show:
            print(f"    {case.completion[-110:]!r} for {case.reference!r}: {score}", file=sys.stderr)
    count.milliseconds = round(1000 * (time.process_time() - started) / len(cases), 3)
    return count


def long_texts() -> dict[str, dict[str, float]]:
    """Processor time of texts of 16,000 characters, in milliseconds."""
    texts = {
        "digits and spaces": "12 " * LONG,
        "words and numbers": "so it is 5 then " * LONG,
        "a box of digits": "\\boxed{" + "1" * (LONG - 8),
    }
    found: dict[str, dict[str, float]] = {}
    for name, text in texts.items():
        case = Case(text[: LONG - 1] + "}" if "box" in name else text[:LONG], "5", False, "stop")
        found[name] = {}
        for reading, grade in READINGS.items():
            started = time.process_time()
            grade(case)
            found[name][reading] = round(1000 * (time.process_time() - started), 1)
    return found


def table(title: str, found: dict[str, dict[str, Count]]) -> str:
    lines = [f"{title:<36} {'ours':^27} {'math-verify':^27}", f"{'':<36} " + f"{'missed':>9} {'wrongly 1':>9} {'ms':>7} " * 2]
    for name, counts in found.items():
        cells = []
        for count in counts.values():
            missed = f"{count.false_negatives}/{count.right}" if count.right else "-"
            taken = f"{count.false_positives}/{count.wrong}" if count.wrong else "-"
            cells.append(f"{missed:>9} {taken:>9} {count.milliseconds:>7.2f}")
        lines.append(f"{name:<36} " + " ".join(cells))
    return "\n".join(lines)


def shared_out(args: argparse.Namespace) -> dict[str, dict[str, dict[str, Count]]]:
    """The counts of all sets, by part, name and reading: `--workers` processes take every so many-th set each."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    started = [subprocess.Popen([*command, "--share", str(i)], stdout=subprocess.PIPE, text=True) for i in range(args.workers)]
    found: list[Any] = []
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            sys.exit(f"a share ended with {process.returncode}")
        found += json.loads(said.splitlines()[-1])
    results: dict[str, dict[str, dict[str, Count]]] = {}
    for _, part, name, counts in sorted(found):
        results.setdefault(part, {})[name] = {reading: Count(**count) for reading, count in counts.items()}
    return results


def share(args: argparse.Namespace, readings: dict[str, Callable[[Case], float | None]]) -> None:
    """Count one worker's sets, and print them as a line of JSON."""
    for grade in readings.values():
        grade(Case(r"\boxed{x+\sqrt{2}}", r"\sqrt{2}+x", True))  # libraries are imported
    sets = [("gsm8k", *named) for named in gsm8k_sets(args.data, args.seed)]
    sets += [("generated", *named) for named in generated_sets(args.pairs, args.seed)]
    found = []
    for place, (part, name, cases) in enumerate(sets):
        if place % args.workers == args.share:
            counts = {r: counted(cases, grade, args.show if r == "ours" else 0) for r, grade in readings.items()}
            found.append([place, part, name, {r: asdict(count) for r, count in counts.items()}])
            print(f"{part}, {name}", file=sys.stderr, flush=True)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="test.jsonl of GSM8K (openai/grade-school-math)")
    parser.add_argument("--pairs", type=int, default=500, help="generated pairs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READINGS, help="one reading alone")
    parser.add_argument("--show", type=int, default=0, help="print so many of our mistakes in each set")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="where to keep the results")
    args = parser.parse_args()
    readings = {name: grade for name, grade in READINGS.items() if args.only in (None, name)}
    if args.share is not None:
        share(args, readings)
        return
    results = shared_out(args)
    for part, sets in results.items():
        print(table(part, sets), flush=True)
    times = long_texts() if args.only is None else {}
    for name, taken in times.items():
        print(f"16,000 characters, {name}: " + ", ".join(f"{reading} {value:,} ms" for reading, value in taken.items()))
    worst = max(counts["ours"].worst for sets in results.values() for counts in sets.values()) if "ours" in readings else 0.0
    print(f"ours at worst: {worst:.2f} %")
    if args.out:
        args.out.write_text(json.dumps(kept(args, results, times, worst), indent=1) + "\n", "utf-8")
    sys.exit(worst > MOST_PERCENT)


def kept(args: argparse.Namespace, results: dict[str, Any], times: dict[str, Any], worst: float) -> dict[str, Any]:
    plain = {
        part: {name: {r: asdict(count) for r, count in counts.items()} for name, counts in sets.items()}
        for part, sets in results.items()
    }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": f"python benchmarks/grading.py --pairs {args.pairs} --seed {args.seed}",
        "versions": {name: version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy")},
        "worst_percent_of_ours": round(worst, 3),
        "milliseconds_for_16000_characters": times,
        **plain,
    }


if __name__ == "__main__":
    main()
