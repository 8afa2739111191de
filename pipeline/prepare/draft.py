"""The config that `rollbook init` writes: what was answered, sizes that suit the machine, a comment where there is a choice."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from pipeline.config.plain_yaml import parse_yaml
from pipeline.prepare.known_set import KnownSet

Reward = Literal["exact", "math", "regex", "own"]
MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
PATTERN = r"(-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)"
"""A number; the last one in the completion counts."""
OWN = "reward:score"
REWARD_FILE = '''"""How completions are graded. Change `score`; `rollbook check` imports this file and says what is off."""


def score(completion: str, answer: str | None, prompt: dict) -> float:
    """The reward of one completion: any finite number, larger is better. 1 counts as solved (evaluate.solved_at).

    completion: what the model wrote, without the prompt.
    answer: the answer column of your data, as text.
    prompt: the row it answers: prompt["question"], prompt["prompt_id"], and the other columns in prompt["metadata"].

    It runs in a process of its own with a time limit; print() goes nowhere. An exception costs this completion its reward
    (status reward_error), and too many of them stop the run: reward.max_failed_share.
    """
    words = completion.split()
    given = words[-1].rstrip(".") if words else ""
    return 1.0 if given == (answer or "").strip() else 0.0


if __name__ == "__main__":  # python reward.py tries it
    print(score("The answer is 42", "42", {"question": "6 * 7?"}))
'''


@dataclass(frozen=True)
class PromptFile:
    """One file of prompts."""

    path: str
    question: str
    answer: str
    answer_pattern: str | None = None
    set_aside: bool = False
    transcript: bool = False

    def text(self, limit: int | None = None) -> str:
        parts = {"path": self.path, "question": self.question, "answer": self.answer}
        parts |= {"answer_pattern": self.answer_pattern} if self.answer_pattern else {}
        shown = [f"{key}: {scalar(value)}" for key, value in parts.items() if value]
        shown += ["transcript: true"] if self.transcript else []
        shown += ["bad_rows: set_aside"] if self.set_aside else []
        shown += [f"limit: {limit}"] if limit else []
        return "{" + ", ".join(shown) + "}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    iterations: int
    prompts: int
    samples: int
    max_tokens: int
    epochs: int
    heldout: int | None
    """Held-out questions that are asked; None: all."""

    @property
    def batch(self) -> int:
        """Completions per optimizer step: four steps an epoch."""
        return max(self.samples, self.prompts * self.samples // 4)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Everything that was answered."""

    name: str
    model: str
    small_model: bool
    train: PromptFile
    heldout: PromptFile
    chat: bool
    system: str | None
    template: str
    reward: Reward
    pattern: str
    own: str
    algorithm: str
    gpu: bool
    sizes: Sizes
    known: KnownSet | None = None
    """The well-known set that the questions are."""

    def text(self) -> str:
        """The config as YAML."""
        sizes = self.sizes
        rate = "1.0e-4" if self.small_model else "1.0e-6"
        lines = [
            f"# {self.name}, written by `rollbook init`. Every setting and its default: docs/configuration.md.",
            "#",
            _said("#   rollbook check run.yaml", "is it sound?"),
            _said("#   rollbook run run.yaml", "does it; killed or stopped, the same command goes on"),
            _said(f"#   rollbook report runs/{self.name}", "writes the page again"),
            "#",
            "# Paths, and modules of your own, are looked for in the directory that the command is given in.",
            f"name: {scalar(self.name)}",
            _said(f"iterations: {sizes.iterations}", "rounds of generate, shape, train, evaluate"),
            "",
            "model:",
            f"  path: {scalar(self.model)}",
            "",
            "data:",
            "  # The files are JSONL or Parquet; question and answer name their columns.",
            *(
                [f"  # Their columns are those of {self.known.name}{f': {self.known.note}' * bool(self.known.note)}."]
                if self.known
                else []
            ),
            f"  train: {self.train.text()}",
            "  # Never trained on: checkpoints are judged by these."
            + " `limit` takes the first, to be quick." * bool(sizes.heldout),
            f"  heldout: {self.heldout.text(sizes.heldout)}",
            *self._prompt_lines(),
            "",
            "generate:",
            _said(f"  prompts: {sizes.prompts}", "training questions per iteration"),
            _said(f"  samples: {sizes.samples}", "completions of each: they are judged against one another"),
            _said(f"  max_tokens: {sizes.max_tokens}", "longest completion; too short cuts answers off"),
            "  temperature: 1.0",
            _said("  shard_groups: 16", "questions per file: what a crash can cost"),
            "",
            "reward:",
            *([_said("  workers: 8", "processes that grade beside the engine")] if self.gpu else []),
            _said("  components:", "their weighted sum is the reward; add more as you like"),
            self._reward_line(),
            "",
            "train:",
            _said(f"  algorithm: {scalar(self.algorithm)}", "`rollbook algorithms` lists them"),
            _said(f"  epochs: {sizes.epochs}", "passes over each iteration's rollouts"),
            _said(f"  batch_completions: {sizes.batch}", "per optimizer step"),
            _said(f"  learning_rate: {rate}", "the first thing to change: larger learns faster, and breaks sooner"),
            "",
            "evaluate:",
            _said("  samples: 4", "sampled completions per held-out question; one greedy comes besides"),
            _said("  k: [1, 4]", "pass@k is reported for these"),
            "",
            _said("# keep: {last: 2, best: true}", "which checkpoints keep their weights; without it, all"),
        ]
        return "\n".join(lines) + "\n"

    def _prompt_lines(self) -> list[str]:
        if not self.chat:
            lines = ["  # The text given to the model; {question} is replaced."] if self.template != "{question}" else []
            return [*lines, f"  template: {scalar(self.template)}"]
        lines = [_said("  chat: true", "rendered with the model's chat template")]
        lines += [f"  system: {scalar(self.system)}"] if self.system else []
        return lines + ([f"  template: {scalar(self.template)}"] if self.template != "{question}" else [])

    def _reward_line(self) -> str:
        match self.reward:
            case "math":
                return _said("    - {grader: math_verify}", "1 if the boxed (or last) expression equals the answer")
            case "regex":
                arguments = f"{{pattern: {scalar(self.pattern)}, numeric: true}}"
                return _said(f"    - {{grader: regex, args: {arguments}}}", "1 if what the pattern finds last is the answer")
            case "own":
                name = re.sub(r"[^a-z0-9_]", "_", self.own.rpartition(":")[2].lower()).lstrip("_0123456789") or "own"
                file = self.own.partition(":")[0].replace(".", "/") + ".py"
                return _said(f"    - {{grader: {scalar(self.own)}, name: {name}}}", f"your function in {file}")
        return _said("    - {grader: exact_match}", "1 if the completion is the answer")


def _said(setting: str, comment: str) -> str:
    """A line with its comment, which stands in one column with the others where it can."""
    return f"{setting:40}  # {comment}"


def scalar(text: str | None) -> str:
    """A text as YAML, in quotes only if it would be read as something else.

    >>> scalar("data/train.jsonl"), scalar("1e5"), scalar("a: b"), scalar("say {it}")
    ('data/train.jsonl', '"1e5"', '"a: b"', '"say {it}"')
    """
    if text and re.fullmatch(r"[\w./-]([\w./ -]*[\w./-])?", text, re.ASCII) and parse_yaml(text) == text:
        return text
    return json.dumps(text, ensure_ascii=False)
