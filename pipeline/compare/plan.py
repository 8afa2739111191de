"""What a comparison is asked for: a snapshot of a run, the algorithms, the seeds, and the settings they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.common.errors import IntegrityError, UserError
from pipeline.compare.choices import Choice, parse_choices
from pipeline.config.course import Course
from pipeline.config.load import change_config, with_plugins
from pipeline.config.run import RunConfig
from pipeline.regrade.plan import GRADED, store_of
from pipeline.run.record import RECORD, load_run
from pipeline.run.state import Run
from pipeline.shape.mix.tokens import check_tokens, check_tokens_of
from pipeline.store import Artifact, Store
from pipeline.store.store import load_artifact

SECTIONS = ("train", "shape", "replay", "evaluate", "engine", "plugins")
"""What --set may change: the rest decides the snapshot, which is there already."""


BASELINE = Choice("best-of-n", "best-of-n")
"""SFT on each group's best completion (on demonstrations, on all): what a method must beat to be worth more than imitation."""


@dataclass(frozen=True)
class Snapshot:
    """The rollouts that every algorithm trains on, and what they come from. Revisions, where the run trained on them."""

    directory: Path
    """The run directory."""
    iteration: int
    config: RunConfig
    """The run's in that iteration, with its store where it really lies."""
    policies: tuple[Artifact, ...]
    """Checkpoints of the run, the base model first; the last drew the rollouts, and every training starts from it."""
    rollouts: Artifact
    heldout: Artifact
    """Held-out prompts."""
    earlier: tuple[Artifact, ...] = ()
    """Rollouts of the run's earlier iterations, newest first, for `replay`."""

    @property
    def base(self) -> Artifact:
        return self.policies[0]

    @property
    def policy(self) -> Artifact:
        """The checkpoint that drew the rollouts, and that every training starts from."""
        return self.policies[-1]

    @property
    def store(self) -> Store:
        return Store(self.config.store_url)


@dataclass(frozen=True)
class Variant:
    """One trial to make."""

    choice: Choice
    seed: int
    epochs: int


@dataclass(frozen=True)
class Plan:
    """A comparison to make."""

    snapshot: Snapshot
    choices: tuple[Choice, ...]
    seeds: tuple[int, ...]
    """Of training. The held-out answers have the run's seed in every trial, so that differences are the policies'."""
    config: RunConfig
    """The run's, with the changes that every trial shares."""
    curve: bool
    """Whether a checkpoint is judged after every epoch."""
    baseline: str | None = None
    """Label of the algorithm that every other one's gain is reported against too."""

    @property
    def directory(self) -> Path:
        """Where the logs lie."""
        return self.snapshot.directory / "comparisons" / self.snapshot.rollouts.manifest.content.key[:16]

    def variants(self) -> list[Variant]:
        """Every trial. All algorithms have their first seed before any has its second."""
        last = self.config.train.epochs
        epochs = range(1 if self.curve else last, last + 1)
        return [Variant(choice, seed, epoch) for seed in self.seeds for choice in self.choices for epoch in epochs]

    @property
    def name(self) -> str:
        return f"{self.config.name} iteration {self.snapshot.iteration}, {len(self.choices)} algorithms"

    def title(self, variant: Variant) -> str:
        """A trial's name for people."""
        seed = f" seed {variant.seed}" if len(self.seeds) > 1 else ""
        epoch = f" epoch {variant.epochs}" if self.curve else ""
        return variant.choice.label + seed + epoch

    def training(self, variant: Variant) -> RunConfig:
        """The config that a trial is shaped and trained by. Its optimizer starts anew: moments are of the algorithm before."""
        section = {
            "algorithm": variant.choice.name,
            "algorithm_args": variant.choice.settings,
            "epochs": variant.epochs,
            "optimizer_state": "fresh",
        }
        train = self.config.train.model_copy(update=section)
        return self._in(variant).model_copy(update={"train": train, "seed": variant.seed})

    def judging(self, variant: Variant | None) -> RunConfig:
        """The config that a trial, or the policy before training, is judged by: the seed is the run's."""
        return self._in(variant)

    def _in(self, variant: Variant | None) -> RunConfig:
        name = "before" if variant is None else f"{variant.choice.label}-{variant.seed}"
        safe = "".join(c if c.isalnum() or c in ".=,+-" else "-" for c in name)
        return self.config.model_copy(update={"run_dir": str(self.directory / safe)})


def make_plan(
    place: str | Path,
    algorithms: Sequence[str],
    *,
    seeds: int = 1,
    iteration: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    curve: bool = False,
    run: str | Path | None = None,
    baseline: bool = False,
) -> Plan:
    """Check everything that a comparison names.

    Args:
        place: a run directory, or a rollouts artifact inside one.
        algorithms: as for `parse_choices`.
        seeds: how many; the first is the run's own.
        iteration: whose rollouts; default 0, or that of the rollouts artifact.
        overrides: `key.path=value` texts.
        plugins: files of the user's own, beside those of the run.
        baseline: train `BASELINE` too, if it is not among the algorithms, and report every gain against it.
        run: where rollouts from elsewhere are trained on: the run directory whose model, settings and held-out prompts count.

    Raises:
        UserError: no such run, iteration, algorithm or setting, or a setting that decides the snapshot.
    """
    snapshot = find_snapshot(Path(place), iteration) if run is None else foreign_snapshot(Path(place), iteration, Path(run))
    config = with_plugins(change_config(snapshot.config, overrides), plugins)
    choices = parse_choices(algorithms, config.plugins)
    if baseline and BASELINE not in choices:
        choices = (*choices, BASELINE)
    _refuse_other_snapshot(snapshot.config, config)
    check_tokens(config.replay, snapshot.base.file("tokenizer.json"))
    if curve and config.train.schedule != "constant":
        raise UserError(
            f"--curve: with train.schedule={config.train.schedule} a training of fewer epochs is not the beginning of a longer "
            "one; add --set train.schedule=constant"
        )
    first = snapshot.config.seed
    return Plan(snapshot, choices, tuple(range(first, first + seeds)), config, curve, BASELINE.label if baseline else None)


def find_snapshot(place: Path, iteration: int | None) -> Snapshot:
    """The rollouts of a run's iteration, from a run directory or from the place of a rollouts artifact inside one.

    Raises:
        UserError: no run there, or the iteration has no rollouts.
    """
    if (place / RECORD).exists() or not (place / "manifest.json").exists():
        directory, run = place if place.is_dir() else place.parent, load_run(place)
        return _snapshot(directory, run, iteration or 0)
    artifact = load_artifact(place)
    directory, run = _run_around(place)
    ids = _with_graded(artifact)
    for step in run.iterations:
        drawn = step.answers.rollouts if step.answers else None
        if ids & {one.id for one in (drawn, step.revised) if one is not None}:
            if iteration not in (None, step.iteration):
                raise UserError(f"{place}: the rollouts of iteration {step.iteration}, not of {iteration}")
            return replace(_snapshot(directory, run, step.iteration), rollouts=artifact)
    if is_foreign(artifact):
        return foreign_snapshot(place, iteration, directory)
    raise UserError(f"{place}: {artifact.kind} {artifact.id[:16]} is not the training rollouts of an iteration of {directory}")


def is_foreign(artifact: Artifact) -> bool:
    """Whether no checkpoint of ours drew these rollouts."""
    return artifact.kind == "rollouts" and all(parent.role != "policy" for parent in artifact.manifest.content.parents)


def foreign_snapshot(place: Path, iteration: int | None, directory: Path) -> Snapshot:
    """Rollouts from elsewhere, as if a run's iteration had drawn them: trainings start from its policy.

    Raises:
        UserError: no such rollouts or run, the iteration has no policy yet, or the tokens are not those of its model.
    """
    artifact, run = load_artifact(place), load_run(directory)
    if artifact.kind != "rollouts":
        raise UserError(f"{place}: a {artifact.kind} artifact; name rollouts")
    step = next((step for step in run.iterations if step.iteration == (iteration or 0)), None)
    if step is None or run.heldout_prompts is None:
        raise UserError(f"{directory}: has no policy of iteration {iteration or 0} yet; `rollbook evaluate` goes as far")
    base = run.iterations[0].policy
    check_tokens_of(artifact, base.file("tokenizer.json"), str(place))
    config = _settings_at(run, step.iteration, store_of(base))
    return Snapshot(directory, step.iteration, config, _policies(run, step.iteration), artifact, run.heldout_prompts)


def _with_graded(artifact: Artifact) -> set[str]:
    """Ids of an artifact, and of those whose completions it has with other rewards."""
    ids, store = {artifact.id}, Store(store_of(artifact))
    while graded := [parent for parent in artifact.manifest.content.parents if parent.role == GRADED]:
        ids.add(graded[0].id)
        try:
            artifact = store.get(graded[0])
        except IntegrityError:
            break
    return ids


def _run_around(place: Path) -> tuple[Path, Run]:
    """The run whose directory an artifact lies in."""
    for directory in place.resolve().parents:
        if (directory / RECORD).exists():
            return directory, load_run(directory)
    raise UserError(
        f"{place}: lies in no run directory. Name the run directory instead, with --iteration, or with --run the one whose "
        "model and held-out prompts are used"
    )


def _snapshot(directory: Path, run: Run, iteration: int) -> Snapshot:
    step = next((step for step in run.iterations if step.iteration == iteration), None)
    rollouts = step.answers.rollouts if step and step.answers else None
    if step is None or rollouts is None or run.heldout_prompts is None:
        there = [str(s.iteration) for s in run.iterations if s.answers and s.answers.rollouts]
        known = f"it has those of {', '.join(there)}" if there else "it has none yet; `rollbook generate` makes them"
        raise UserError(f"{directory}: no training rollouts of iteration {iteration}; {known}")
    rollouts = step.trained_on or rollouts
    store = rollouts.url.rpartition("/")[0].rpartition("/")[0]  # the record follows a run that was moved; its config does not
    config = _settings_at(run, iteration, store)
    earlier = tuple(run.rollouts_before(iteration))
    return Snapshot(directory, iteration, config, _policies(run, iteration), rollouts, run.heldout_prompts, earlier)


def _settings_at(run: Run, iteration: int, store: str) -> RunConfig:
    """A run's settings in one iteration; those of the last for the policy that it ended with."""
    settings = Course(run.config).at(min(iteration, run.config.iterations - 1))
    return settings.model_copy(update={"store": store})


def _policies(run: Run, iteration: int) -> tuple[Artifact, ...]:
    return tuple(step.policy for step in run.iterations if step.iteration <= iteration)


def _refuse_other_snapshot(run: RunConfig, changed: RunConfig) -> None:
    others = [name for name in RunConfig.model_fields if name not in SECTIONS and getattr(run, name) != getattr(changed, name)]
    if others:
        raise UserError(
            f"--set {others[0]}: part of the run that is compared on, as the rollouts are. A comparison can change "
            f"{', '.join(SECTIONS)}"
        )
    if (run.train.algorithm, run.train.algorithm_args) != (changed.train.algorithm, changed.train.algorithm_args):
        raise UserError("--set train.algorithm: name algorithms and their settings with --algorithms, such as grpo:low=0.1")
