"""ms-swift: completions.jsonl of GRPO (log_completions), one step a line, its columns as lists.

Columns (4.6): step, prompt (rendered, special tokens written out), completion, one per reward function, advantages, and further
columns of the data set. What stands between completion and advantages are the reward functions.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.exchange.imports.explode import parts_of
from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import Values, answer, asked, messages, number, reference, rest_of, text

ANSWERS = ("solution", "answer", "ground_truth")


class SwiftSteps(Format):
    """As many completions a line as its lists are long."""

    name = "ms-swift"
    title = "ms-swift's completions.jsonl"
    signatures = (("step", "prompt", "completion", "advantages"),)
    fields = {
        "step": "group",
        "prompt": "prompt_text",
        "completion": "completion_text",
        "<a reward function>": "reward_<its name>",
        "solution": "answer",
    }
    engine = "ms-swift"

    def known(self, row: SourceRow) -> Iterable[Known]:
        lists = [name for name, value in row.values.items() if isinstance(value, list)]
        rewards = self._rewards(row.values)
        known_answer = next((name for name in ANSWERS if name in row.values), None)
        for values in parts_of(row.values, lists):
            prompt = asked(messages(values, "prompt"))
            yield Known(
                row=row,
                prompt=prompt,
                prompt_is_whole=True,
                completion=answer(values, "completion"),
                components={name: number(values, name) for name in rewards},
                group=(f"step {text(values, 'step')}",),
                answer=reference(values[known_answer]) if known_answer else None,
                rest=rest_of(values, {"prompt", "completion", *rewards}),
            )

    def _rewards(self, values: Values) -> tuple[str, ...]:
        if self.options.rewards is not None:
            return self.options.rewards
        names = list(values)
        between = names[names.index("completion") + 1 : names.index("advantages")]
        return tuple(name for name in between if name not in ("step", "prompt", *ANSWERS) and _numeric(values[name]))


def _numeric(value: object) -> bool:
    return isinstance(value, list) and all(item is None or isinstance(item, int | float) for item in value)


FORMAT = SwiftSteps
