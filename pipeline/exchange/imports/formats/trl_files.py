"""TRL: what GRPOTrainer and RLOOTrainer write with log_completions=True, completions/completions_00010.parquet.

Columns (trl 1.16, trainer/grpo_trainer.py, `log`): step, prompt, completion, one per reward function, one per `log_extra`,
advantage. Prompts and completions are text, or messages. There are no token ids, logprobs or sampling settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.exchange.imports.format import Format, misfit
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.values import answer_text, integer, messages, number, rest_of


class TRL(Format):
    """A step is logged whenever logging is due, so one generation used for several steps is logged several times."""

    name = "trl"
    title = "TRL's completions Parquet (log_completions)"
    signatures = (("step", "prompt", "completion", "advantage"),)
    fields = {
        "step": "group",
        "prompt": "prompt_text",
        "completion": "completion_text",
        "<a reward function>": "reward_<its name>",
    }
    engine = "TRL"

    def read(self, rows: Iterable[SourceRow]) -> Iterator[Known | Misfit]:
        before: list[SourceRow] = []
        for step in _steps(rows):
            if before and _said(before) == _said(step):
                why = f"the same completions as at step {before[0].values.get('step')}, logged again"
                yield from (misfit(row, why) for row in step)
            else:
                for row in step:
                    yield from self.read_row(row)
            before = step

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        rewards = self._rewards(values)
        yield Known(
            row=row,
            prompt=messages(values, "prompt"),
            completion=answer_text(values, "completion"),
            group=(f"step {integer(values, 'step')}",),
            components={name: number(values, name) for name in rewards},
            rest=rest_of(values, {"prompt", "completion", *rewards}),
        )

    def _rewards(self, values: dict[str, object]) -> tuple[str, ...]:
        """The file does not say which columns are rewards and which the user logged: numbers before the advantage are taken."""
        if self.options.rewards is not None:
            return self.options.rewards
        names = [name for name in values if name not in ("step", "prompt", "completion", "advantage")]
        return tuple(name for name in names if values[name] is None or isinstance(values[name], float))


def _steps(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    """Rows of one step after the other."""
    step: list[SourceRow] = []
    for row in rows:
        if step and step[0].values.get("step") != row.values.get("step"):
            yield step
            step = []
        step.append(row)
    if step:
        yield step


def _said(step: list[SourceRow]) -> list[str]:
    return [repr({name: value for name, value in row.values.items() if name != "step"}) for row in step]


FORMAT = TRL
