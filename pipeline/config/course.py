"""The settings of each iteration: phases and schedules resolved, so that whoever makes orders is given plain settings."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.config.phases import ALIKE, SECTIONS, Phase, Schedule
from pipeline.config.run import RunConfig

ARGS = "train.algorithm_args."


class Unsound(UserError):
    """Phases or schedules that cannot be.

    Args:
        where: dotted place in the config.
        why: a sentence, or what was wrong with the settings that they resolve to.
    """

    def __init__(self, where: str, why: str | ValidationError) -> None:
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why


@dataclass(frozen=True)
class Stretch:
    """Iterations in a row that have the same settings."""

    first: int
    last: int
    settings: dict[str, Any]
    """What phases and schedules decide, by dotted name, and the algorithm and the reference."""

    @property
    def iterations(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __str__(self) -> str:
        """
        >>> str(Stretch(0, 2, {"train.algorithm": "sft", "train.learning_rate": 1e-05 + 2e-21}))
        'iteration 0-2: train.algorithm=sft, train.learning_rate=1e-05'
        """
        return f"iteration {self.iterations}: {', '.join(f'{name}={self.shown(name)}' for name in self.settings)}"

    def shown(self, name: str) -> str:
        """A setting's value as text; nothing where it is not given."""
        value = self.settings.get(name, "")
        return f"{value:.6g}" if isinstance(value, float) else str(value)


class Course:
    """A run's settings, iteration by iteration: a pure function of the config and of the iteration's number."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._moves = bool(config.phases or config.schedules)
        self._tree = config.model_dump(mode="json", exclude={"phases", "schedules"}) if self._moves else {}
        self._resolved: list[RunConfig] = []
        self._steps = [0]

    def at(self, iteration: int) -> RunConfig:
        """The settings of one iteration, without phases and schedules.

        Raises:
            Unsound: there are none.
        """
        if not self._moves:
            return self._config
        while len(self._resolved) <= iteration:
            number = len(self._resolved)
            found = self._make(number)
            self._resolved.append(found)
            self._steps.append(self._steps[number] + _steps(found))
        return self._resolved[iteration]

    def distinct(self) -> Iterator[tuple[int, RunConfig]]:
        """The settings of all iterations, each with the first iteration that has them after others."""
        before = None
        for number in range(self._config.iterations):
            if (here := self.at(number)) != before:
                yield number, here
            before = here

    def phase(self, iteration: int) -> int | None:
        """Place of the phase that an iteration lies in; None in a run without phases."""
        for place, phase in enumerate(self._config.phases):
            if phase.first <= iteration and (phase.last is None or iteration <= phase.last):
                return place
        return None

    def check(self) -> None:
        """
        Raises:
            Unsound: the first thing that is wrong with phases, schedules or references.
        """
        _check_spans(self._config)
        for where, schedules in self._schedules():
            for name, schedule in schedules.items():
                _check_schedule(f"{where}.{name}", name, schedule, self._config)
        for number in range(self._config.iterations):
            reference = self.at(number).reference
            version = reference.version(number)
            if version is not None and version > number:
                place = self.phase(number)
                stated = place is not None and self._config.phases[place].reference is not None
                where = f"phases.{place}.reference" if stated else "reference"
                raise Unsound(
                    where,
                    f"the checkpoint of iteration {version} is not made yet when iteration {number} trains; expected at most "
                    f"{number}",
                )

    def table(self) -> list[Stretch]:
        """What holds when, for people and reports: one row per stretch."""
        names = list(self._named())
        rows: list[Stretch] = []
        for number in range(self._config.iterations):
            config = self.at(number)
            settings = {"train.algorithm": config.train.algorithm, "reference": str(config.reference)}
            settings |= {name: value for name in names if (value := value_of(config, name)) is not None}
            if rows and rows[-1].settings == settings:
                rows[-1] = Stretch(rows[-1].first, number, settings)
            else:
                rows.append(Stretch(number, number, settings))
        return rows

    def scheduled(self, iteration: int) -> dict[str, float]:
        """Values of the settings that schedules move, at an iteration."""
        names = [name for where, schedules in self._schedules(iteration) for name in schedules]
        return {name: value_of(self.at(iteration), name) for name in dict.fromkeys(names)}

    def _schedules(self, iteration: int | None = None) -> Iterator[tuple[str, Mapping[str, Schedule]]]:
        """Schedules of the run, then of its phases (of the one that an iteration lies in)."""
        yield "schedules", self._config.schedules
        here = None if iteration is None else self.phase(iteration)
        for place, phase in enumerate(self._config.phases):
            if iteration is None or place == here:
                yield f"phases.{place}.schedules", phase.schedules

    def _named(self) -> Iterator[str]:
        """Names of all settings that phases or schedules decide, each once."""
        names: dict[str, None] = {}
        for phase in self._config.phases:
            for section in SECTIONS:
                for key, value in getattr(phase, section).items():
                    inner = value if f"{section}.{key}." == ARGS and isinstance(value, dict) else None
                    names |= dict.fromkeys([f"{ARGS}{name}" for name in inner] if inner is not None else [f"{section}.{key}"])
        names |= {name: None for _, schedules in self._schedules() for name in schedules}
        names.pop("train.algorithm", None)
        yield from names

    def _make(self, number: int) -> RunConfig:
        place = self.phase(number)
        tree = {**self._tree, **{section: dict(self._tree[section]) for section in SECTIONS}}
        where = "schedules"
        if place is None:
            if self._config.phases:
                raise Unsound("phases", f"no phase holds for iteration {number}")
        else:
            phase = self._config.phases[place]
            where = f"phases.{place}"
            _change(tree, phase, where)
        for owner, schedules in self._schedules(number):
            start = self._config.phases[place].first if place is not None and owner != "schedules" else 0
            for name, schedule in schedules.items():
                _check_name(f"{owner}.{name}", name)
                passed = self._steps[number] - self._steps[start] if schedule.by == "step" else number - start
                _set(tree, name, schedule.value(passed))
        try:
            return RunConfig.model_validate(tree)
        except ValidationError as error:
            raise Unsound(where, error) from None


def value_of(config: RunConfig, name: str) -> Any:
    """A setting by its dotted name; None where it is not given."""
    if name.startswith(ARGS):
        return config.train.algorithm_args.get(name.removeprefix(ARGS))
    section, _, key = name.partition(".")
    value = getattr(getattr(config, section), key)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _steps(config: RunConfig) -> int:
    """Optimizer steps that an iteration's settings ask for."""
    return config.train.epochs * math.ceil(config.generate.prompts * config.generate.samples / config.train.batch_completions)


def _change(tree: dict[str, Any], phase: Phase, where: str) -> None:
    for section in SECTIONS:
        changes = getattr(phase, section)
        for key in changes:
            _check_name(f"{where}.{section}.{key}", f"{section}.{key}")
        if (section == "train" and "algorithm_args" in changes) or "algorithm" in changes:
            same = changes.get("algorithm", tree[section]["algorithm"]) == tree[section]["algorithm"]
            given = changes.get("algorithm_args") or {}
            before = tree[section]["algorithm_args"] if same else {}
            changes = {**changes, "algorithm_args": {**before, **given} if isinstance(given, dict) else given}
        tree[section] |= changes
    if phase.reference is not None:
        tree["reference"] = phase.reference.model_dump(mode="json")


def _set(tree: dict[str, Any], name: str, value: float) -> None:
    if name.startswith(ARGS):
        tree["train"]["algorithm_args"] = {**tree["train"]["algorithm_args"], name.removeprefix(ARGS): value}
    else:
        section, _, key = name.partition(".")
        tree[section][key] = value


def _check_name(where: str, name: str) -> None:
    if name in ALIKE:
        raise Unsound(
            where, "held-out answers are drawn by it too, and checkpoints are compared by these; set it for the whole run"
        )


def _check_spans(config: RunConfig) -> None:
    """Phases lie side by side, from iteration 0 to the run's last."""
    expected = 0
    for place, phase in enumerate(config.phases):
        before = f"phases.{place - 1} ends with iteration {expected - 1}" if place else "the first iteration is 0"
        if expected < 0:
            raise Unsound(
                f"phases.{place}.iterations", f"phases.{place - 1} holds for all iterations from its first on; nothing follows it"
            )
        if phase.first != expected:
            fault = "an overlap" if phase.first < expected else "a hole"
            raise Unsound(
                f"phases.{place}.iterations", f"{fault}: {before}, and this one begins with {phase.first}; expected {expected}-"
            )
        expected = -1 if phase.last is None else phase.last + 1
    if config.phases and 0 <= expected < config.iterations:
        raise Unsound(
            "phases", f"a hole: the last phase ends with iteration {expected - 1}, and the run's last is {config.iterations - 1}"
        )


def _check_schedule(where: str, name: str, schedule: Schedule, config: RunConfig) -> None:
    """Whether a schedule moves a number that may move."""
    _check_name(where, name)
    section, _, key = name.partition(".")
    if schedule.by == "step" and config.train.batch_tokens is not None:
        raise Unsound(
            where, "by: step counts steps of train.batch_completions, and train.batch_tokens decides instead; count iterations"
        )
    if name.startswith(ARGS) and name != ARGS:
        return  # the algorithm says which settings it has, and of what kind they are
    fields = type(getattr(config, section)).model_fields if section in SECTIONS else {}
    if section not in SECTIONS:
        raise Unsound(where, f"only settings of {', '.join(SECTIONS)} can move, such as train.learning_rate")
    if key not in fields:
        numbers = [f"{section}.{each}" for each, field in fields.items() if _takes_numbers(field.annotation)]
        raise Unsound(where, f"no such setting; numbers there are {', '.join(each for each in numbers if each not in ALIKE)}")
    if not _takes_numbers(fields[key].annotation):
        raise Unsound(where, "no number, so nothing that a schedule could move; a phase can change it")


def _takes_numbers(annotation: Any) -> bool:
    return annotation in (int, float) or any(_takes_numbers(part) for part in _options(annotation))


def _options(annotation: Any) -> tuple[Any, ...]:
    """Alternatives of a union; nothing for containers."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is not tuple and not isinstance(annotation, type) else ()
