"""A whole run. Imports neither torch nor vLLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.base import Model
from pipeline.config.cluster import ClusterConfig
from pipeline.config.data import DataConfig, ModelConfig
from pipeline.config.engine import EngineConfig, GenerateConfig
from pipeline.config.environment import EnvironmentConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.keep import KeepConfig
from pipeline.config.phases import Phase, ReferenceConfig, Schedule
from pipeline.config.revise import ReviseConfig
from pipeline.config.reward import RewardConfig
from pipeline.config.shape import ReplayConfig, ShapeConfig
from pipeline.config.stop import StopConfig
from pipeline.config.tell import TellConfig
from pipeline.config.track import TrackConfig
from pipeline.config.train import TrainConfig


class RunConfig(Model):
    """A whole run: what `rollbook run CONFIG` reads."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    run_dir: str | None = None
    """Where the run lies. Default: runs/<name>."""
    store: str | None = None
    """Where artifacts lie: a directory, or s3://bucket/prefix. Runs that share one share finished work. Default: the run
    directory's own."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every random choice follows from it."""
    iterations: int = Field(default=1, ge=1)
    """Rounds of generate, shape, train, evaluate."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """Prompts, and how they are put to the model."""
    engine: EngineConfig = EngineConfig()
    """What vLLM may use."""
    cluster: ClusterConfig | None = None
    """A Ray cluster whose nodes generate, in place of this machine. See docs/engines.md."""
    generate: GenerateConfig = GenerateConfig()
    """Rollouts: how many, and how they are sampled."""
    environment: EnvironmentConfig | None = None
    """What answers within a completion, which is then an episode of several turns. See docs/episodes.md."""
    reward: RewardConfig
    """How completions are graded."""
    shape: ShapeConfig = ShapeConfig()
    """Which rollouts are trained on."""
    replay: ReplayConfig = ReplayConfig()
    """Rollouts of earlier iterations, or from elsewhere, that are trained on beside the new ones."""
    train: TrainConfig = TrainConfig()
    """The algorithm and its optimiser."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How checkpoints are judged."""
    reference: ReferenceConfig = ReferenceConfig(iteration=0)
    """Whose logprobs are the reference's, for algorithms that read them: base, previous (the policy that the training starts
    from), {iteration: 3}, {every: 3}, or the path of a model."""
    phases: tuple[Phase, ...] = ()
    """Stretches of iterations with settings of their own, which change those of the sections above. See docs/phases.md."""
    schedules: dict[str, Schedule] = {}
    """Numbers that move with the iterations, by dotted name: {train.learning_rate: {linear: [1e-5, 1e-6], until: 9}}."""
    keep: KeepConfig = KeepConfig()
    """Which checkpoints keep their weights, once nothing needs them. No rule named: all of them. See docs/storage.md."""
    stop: StopConfig = StopConfig()
    """When to end before the last iteration. Rules that are null never do."""
    tell: TellConfig = TellConfig()
    """Who is told when the run stops or fails. It decides nothing of the results."""
    track: TrackConfig = TrackConfig()
    """Where the run's figures go while it works. It decides nothing of the results."""
    plugins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Python files of your own with algorithms, such as my_algorithms.py. They are run: name only code you trust."""

    revise: ReviseConfig = ReviseConfig()
    """Who corrects the policy's own completions before they are trained on: one of pattern, function, file, model, and url with
    model. None named: nobody. See docs/revision.md."""

    @model_validator(mode="after")
    def _servers_hold_one_model(self) -> RunConfig:
        if self.generate.mixture and self.engine.server:
            raise ValueError(
                "generate.mixture: needs engines of the run's own, and engine.server names servers, which hold one model; leave "
                "one of them out"
            )
        return self

    @model_validator(mode="after")
    def _solved_by_a_component(self) -> RunConfig:
        judged: list[tuple[str, str | None, RewardConfig]] = [("evaluate", self.evaluate.solved_by, self.reward)]
        for one in self.evaluate.sets:
            judged.append((f"evaluate.sets, {one.name}", one.solved_by, one.reward or self.reward))
        for where, component, reward in judged:
            names = [each.short for each in reward.components]
            if component is not None and component not in names:
                raise ValueError(f"{where}: solved_by {component!r} is no component of its reward, which has {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _rendered_history_is_a_chat(self) -> RunConfig:
        if self.environment is None or self.environment.history == "drawn":
            return self
        told = 'environment.history: "rendered" has the chat template write earlier turns anew'
        if not self.data.chat:
            raise ValueError(f"{told}; set data.chat: true")
        if self.shape.credit == "turn" or self.shape.void_turns == "mask":
            setting = "credit: turn" if self.shape.credit == "turn" else "void_turns: mask"
            raise ValueError(
                f"{told}, and each turn is a row, which has the reward of its episode; shape.{setting} needs history: drawn"
            )
        if self.replay.is_on or self.revise.is_on:
            part = "replay" if self.replay.is_on else "revise"
            raise ValueError(
                f"{told}, so that an episode is several rows, which {part} would take apart; it needs history: drawn"
            )
        return self

    @model_validator(mode="after")
    def _one_place_to_generate(self) -> RunConfig:
        if self.cluster and self.engine.server:
            raise ValueError("cluster and engine.server both say who generates; keep one of them")
        if self.cluster and self.engine.replicas != "auto":
            raise ValueError("engine.replicas counts the engines of one machine; on a cluster cluster.engines does")
        return self

    @property
    def directory(self) -> Path:
        return Path(os.path.expanduser(self.run_dir or f"runs/{self.name}"))

    @property
    def store_url(self) -> str:
        return os.path.expanduser(self.store or str(self.directory / "artifacts"))
