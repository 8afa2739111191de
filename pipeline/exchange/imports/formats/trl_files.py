"""TRL: what GRPOTrainer and RLOOTrainer write with log_completions=True, completions/completions_00010.parquet.

Columns (trl 1.16, trainer/grpo_trainer.py, `log`): step, prompt, completion, one per reward function, one per `log_extra`,
advantage. Prompts and completions are text, or messages. There are no token ids, logprobs or sampling settings, and nothing
says which columns are rewards and what they weigh: the advantage does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from pipeline.exchange.imports.by_advantage import find_rewards
from pipeline.exchange.imports.format import Format, Options, misfit
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.values import Values, answer, asked, messages, number, rest_of, text

OWN = ("step", "prompt", "completion", "advantage")
LOOKED_AT = 4096
"""Rows by whose advantages it is told which columns are rewards."""


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
    remembers = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._rewards: dict[str, float] = dict.fromkeys(options.rewards or (), 1.0)

    def read(self, rows: Iterable[SourceRow]) -> Iterator[Known | Misfit]:
        rows = iter(rows)
        first = list(islice(rows, LOOKED_AT))
        if self.options.rewards is None:
            self._rewards = self._told(first)
        before: list[SourceRow] = []
        for step in _steps(chain(first, rows)):
            if before and _said(before) == _said(step):
                why = f"the same completions as at step {before[0].values.get('step')}, logged again"
                yield from (misfit(row, why) for row in step)
            else:
                for row in step:
                    yield from self.read_row(row)
            before = step

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        yield Known(
            row=row,
            prompt=asked(messages(values, "prompt")),
            completion=answer(values, "completion"),
            group=(f"step {text(values, 'step')}",),
            components={name: number(values, name) for name in self._rewards},
            component_weights=self._rewards,
            rest=rest_of(values, {"prompt", "completion", *self._rewards}),
        )

    def _told(self, rows: list[SourceRow]) -> dict[str, float]:
        """The columns that are rewards, and their weights, by what the advantages say."""
        names = list(dict.fromkeys(name for row in rows for name in row.values if name not in OWN))
        numeric = [name for name in names if all(_is_number(row.values.get(name)) for row in rows)]
        some = [name for name in numeric if any(row.values.get(name) is not None for row in rows)]
        if not some or not all(isinstance(row.values.get("advantage"), float) for row in rows):
            return dict.fromkeys(numeric, 1.0)
        groups = [(row.values.get("step"), json.dumps(row.values.get("prompt"), default=str)) for row in rows]
        columns = {name: [row.values.get(name) for row in rows] for name in some}
        found = find_rewards(groups, columns, [row.values["advantage"] for row in rows])
        told = " + ".join(name if weight == 1 else f"{weight:.4g} {name}" for name, weight in found.weights.items())
        others = [name for name in some if name not in found.weights]
        if found.certain:
            but = f"; {', '.join(others)}: logged beside, no reward" if others else ""
            self.remark(f"the reward is {told}, which gives the logged advantages{but}. Otherwise: --rewards, --reward-weight")
        elif len(some) > 1:
            self.remark(f"the reward is {told}: the advantages do not say which columns are rewards. Name them: --rewards")
        return found.weights


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float)


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


def _said(step: list[SourceRow]) -> list[Values]:
    return [{name: value for name, value in row.values.items() if name != "step"} for row in step]


FORMAT = TRL
