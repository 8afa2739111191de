"""The order of a run, with stages that write down what they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from flows.chain import chain, generates_next
from pipeline.config.run import RunConfig
from pipeline.run.local import Missing
from pipeline.run.parts import Part
from pipeline.run.record import Answers, Run
from pipeline.store import Artifact

Make = Callable[..., Artifact]
Config = Callable[..., RunConfig]

WHOLE = [
    "base",
    "prompts for checkpoint 0",
    "generate 0 by checkpoint 0 with training prompts",
    "evaluate 0 of checkpoint 0",
    "shape 0",
    "score 0 against checkpoint 0",
    "train 0 from checkpoint 0 on 0",
    "generate 1 by checkpoint 1 with training prompts",
    "evaluate 1 of checkpoint 1",
    "shape 1",
    "replay 1 with 0",
    "score 1 against checkpoint 1",
    "score 1 against checkpoint 1",
    "train 1 from checkpoint 1 on 1 and 0",
    "generate 2 by checkpoint 2 without",
    "evaluate 2 of checkpoint 2",
]
"""Everything that a run of two iterations does."""


class Recorded:
    """Every stage answers at once, unless it is `missing`, and is written down."""

    def __init__(self, make: Make, missing: str | None = None) -> None:
        self.make = make
        self.missing = missing
        self.asked: list[str] = []

    def _note(self, words: str) -> None:
        stage = " ".join(words.split()[:2])
        if self.missing in (stage, stage.split()[0]):
            raise Missing(stage)
        self.asked.append(words)

    def base(self) -> Artifact:
        self._note("base")
        return self.make("checkpoint", iteration=0)

    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]:
        self._note(f"prompts for {named(base)}")
        return self.make("prompts", name="train"), self.make("prompts", name="heldout")

    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers:
        self._note(f"generate {iteration} by {named(policy)} {'with training prompts' if train else 'without'}")
        assert heldout.recipe == {"name": "heldout"}
        assert train is None or train.recipe == {"name": "train"}
        rollouts = self.make("rollouts", iteration=iteration) if train else None
        return Answers(self.make("rollouts", sampled=iteration), None, rollouts)

    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact:
        self._note(f"evaluate {iteration} of {named(policy)}")
        assert answers.sampled.recipe == {"sampled": iteration}
        return self.make("evaluation", iteration=iteration)

    def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
        self._note(f"shape {iteration}")
        assert rollouts.recipe == {"iteration": iteration}
        return self.make("shaped", iteration=iteration)

    def score(self, iteration: int, policy: Artifact, rollouts: Artifact) -> dict[str, Artifact]:
        self._note(f"score {iteration} against {named(policy)}")
        return {"proximal": self.make("scores", iteration=iteration)}

    def replay(self, iteration: int, fresh: Part, earlier: Sequence[Artifact]) -> tuple[Part, ...]:
        if earlier:
            self._note(f"replay {iteration} with {', '.join(str(rollouts.recipe['iteration']) for rollouts in earlier)}")
        return tuple(Part(rollouts, self.make("shaped", drawn_for=iteration)) for rollouts in earlier)

    def train(self, iteration: int, policy: Artifact, parts: Sequence[Part]) -> Artifact:
        fresh, *replayed = parts
        beside = "".join(f" and {part.rollouts.recipe['iteration']}" for part in replayed)
        self._note(f"train {iteration} from {named(policy)} on {fresh.rollouts.recipe['iteration']}{beside}")
        assert (fresh.rollouts.recipe, fresh.shaped.recipe) == ({"iteration": iteration},) * 2
        assert all(part.shaped.recipe == {"drawn_for": iteration} for part in replayed)
        assert all(part.scores["proximal"].recipe == {"iteration": iteration} for part in parts)
        return self.make("checkpoint", iteration=iteration + 1)


def named(policy: Artifact) -> str:
    return f"checkpoint {policy.summary['iteration']}"


def test_a_run_goes_round_and_ends_with_an_evaluation(make_config: Config, make_artifact: Make) -> None:
    stages = Recorded(make_artifact)
    run = chain(make_config({"iterations": 2}), stages)
    assert stages.asked == WHOLE
    assert run.missing is None
    assert [step.policy.summary["iteration"] for step in run.iterations] == [0, 1, 2]
    assert [step.checkpoint is None for step in run.iterations] == [False, False, True]
    assert all(step.evaluation for step in run.iterations)


@pytest.mark.parametrize(
    ("until", "last", "missing"),
    [
        (("generate", 0), 2, "evaluate 0"),
        (("evaluate", 0), 3, "shape 0"),
        (("shape", 0), 4, "train 0"),
        (("train", 0), 6, "generate 1"),
        (("generate", 1), 7, "evaluate 1"),
        (("train", 1), 13, "generate 2"),
        (("evaluate", 2), 15, None),
    ],
    ids=str,
)
def test_until_stops_after_its_stage(
    make_config: Config, make_artifact: Make, until: tuple[str, int], last: int, missing: str | None
) -> None:
    stages = Recorded(make_artifact)
    run = chain(make_config({"iterations": 2}), stages, until=until)
    assert stages.asked == WHOLE[: last + 1]
    assert run.missing == missing


@pytest.mark.parametrize(
    ("missing", "done"),
    [
        ("base", 0),
        ("prompts", 1),
        ("generate 0", 2),
        ("evaluate 0", 3),
        ("shape 0", 4),
        ("train 0", 6),
        ("replay 1", 10),
        ("generate 2", 14),
    ],
)
def test_a_stage_that_is_not_there_ends_the_look_and_is_named(
    make_config: Config, make_artifact: Make, missing: str, done: int
) -> None:
    stages = Recorded(make_artifact, missing)
    run = chain(make_config({"iterations": 2}), stages)
    assert stages.asked == WHOLE[:done]
    assert run.missing is not None
    assert run.missing.startswith(missing)


def test_what_there_is_is_told_after_every_stage(make_config: Config, make_artifact: Make) -> None:
    told: list[str | None] = []

    def on_change(run: Run) -> None:
        told.append(run.missing)

    chain(make_config({"iterations": 1}), Recorded(make_artifact), on_change)
    stages = ["generate 0", "evaluate 0", "shape 0", "train 0", "generate 1", "evaluate 1"]
    assert [stage for stage in told if stage in stages] == stages
    assert told[-1] is None


def test_rewards_that_teach_nothing_end_the_run_before_it_trains(make_config: Config, make_artifact: Make) -> None:
    class Flat(Recorded):
        def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
            self._note(f"shape {iteration}")
            return self.make("shaped", kept=8, positives=0, negatives=0, groups=2, zero_variance_groups=2)

    stages = Flat(make_artifact)
    run = chain(make_config({"iterations": 2}), stages)
    assert stages.asked == WHOLE[:5]
    assert run.missing is None
    assert run.stopped is not None and run.stopped.rule == "no_signal"
    look = Flat(make_artifact)
    assert chain(make_config({"iterations": 2, "stop.no_signal": None}), look, until=("shape", 0)).missing == "train 0"


def test_an_error_of_a_stage_is_not_swallowed(make_config: Config, make_artifact: Make) -> None:
    class Failing(Recorded):
        def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        chain(make_config(), Failing(make_artifact))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("base", True), ("prompts", True), ("generate 0", True), ("evaluate 0", False), ("shape 0", False), ("replay 1", False),
     ("score 0", False), ("train 0", False), ("generate 2", True), (None, False)],
)  # fmt: skip
def test_an_engine_is_started_early_only_if_its_answers_come_next(
    make_config: Config, make_artifact: Make, missing: str | None, expected: bool
) -> None:
    assert generates_next(chain(make_config({"iterations": 2}), Recorded(make_artifact, missing))) is expected
