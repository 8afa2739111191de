"""Stages answered on this machine: from the store where they are finished, else by a process that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import base_model, prompts, requests
from pipeline.algorithms import resolve
from pipeline.algorithms.cells.cell import PROXIMAL, REFERENCE
from pipeline.artifacts import Artifact, Request, Store
from pipeline.artifacts.store import load_artifact
from pipeline.config import PromptSource, RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.process import Event, StageProcess
from pipeline.prompts import Render, chat_renderer, template_renderer
from pipeline.run import Answers

OnStage = Callable[[str, Event], None]
"""Called with a stage's title and an event: started, progress, note, found, finished."""


class Missing(Exception):
    """A stage that is not finished, raised by stages that only look."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class LocalStages:
    """Each method returns a finished artifact.

    Args:
        config: the run.
        on_stage: told what happens.
        only_look: raise `Missing` instead of working.
    """

    def __init__(self, config: RunConfig, on_stage: OnStage = lambda stage, event: None, *, only_look: bool = False) -> None:
        self.config = config
        self.store = Store(config.store_url)
        self.on_stage = on_stage
        self.only_look = only_look
        self._warm: StageProcess | None = None

    @cached_property
    def model_files(self) -> dict[str, Path]:
        return base_model.model_files(base_model.locate(self.config.model), trust_remote_code=self.config.model.trust_remote_code)

    def base(self) -> Artifact:
        """The base model as the checkpoint of iteration 0."""
        request = requests.import_request(base_model.hashes_of(self.model_files))

        def make() -> Artifact:
            return base_model.import_model(self.store, request, self.model_files, self.config.model.path)

        return self._found_or_made("base model", request, make)

    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]:
        """Training prompts and held-out prompts."""
        train = self._prompts("training prompts", self.config.data.train, base, None)
        disjoint_from = None if self.config.data.allow_overlap else train
        return train, self._prompts("held-out prompts", self.config.data.heldout, base, disjoint_from)

    def _prompts(self, title: str, source: PromptSource, base: Artifact, disjoint_from: Artifact | None) -> Artifact:
        model = base if self.config.data.chat else None
        digest = prompts.source_hash(source)
        request = requests.prompts_request(self.config, source, digest, model=model, disjoint_from=disjoint_from)

        def make() -> Artifact:
            return prompts.make_prompts(self.store, request, source, self._renderer(base), disjoint_from)

        return self._found_or_made(title, request, make)

    def _renderer(self, base: Artifact) -> Render:
        data = self.config.data
        if not data.chat:
            return template_renderer(data.template)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=self.config.model.trust_remote_code)
        return chat_renderer(tokenizer, data.template, data.system)

    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers:
        """Everything that a checkpoint must answer. `train` is None for the last checkpoint."""
        wanted = {"sampled": (requests.heldout_request(self.config, policy, heldout, greedy=False), heldout)}
        if self.config.evaluate.greedy:
            wanted["greedy"] = requests.heldout_request(self.config, policy, heldout, greedy=True), heldout
        if train is not None:
            wanted["rollouts"] = requests.rollouts_request(self.config, iteration, policy, train), train
        title = f"generate {iteration}"
        found = {name: self.store.find(request) for name, (request, _) in wanted.items()}
        if all(found.values()):
            self.on_stage(title, {"event": "found"})
        else:
            jobs = [{"request": request.to_json(), "prompts": str(source.path)} for request, source in wanted.values()]
            spec = {"engine": self.config.engine.model_dump(mode="json"), "reward": self.config.reward.model_dump(mode="json")}
            result = self._process("pipeline.generate", title, {**spec, "policy": str(policy.path), "jobs": jobs})
            found = {name: load_artifact(path) for name, path in zip(wanted, result["artifacts"], strict=True)}
        sampled = found["sampled"]
        assert sampled is not None
        return Answers(sampled, found.get("greedy"), found.get("rollouts"))

    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact:
        """Figures of a checkpoint."""
        request = requests.evaluate_request(self.config, policy, answers.sampled, answers.greedy)
        greedy = str(answers.greedy.path) if answers.greedy else None
        return self._artifact("evaluate", iteration, request, {"sampled": str(answers.sampled.path), "greedy": greedy})

    def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
        """Advantages and weights."""
        request = requests.shape_request(self.config, rollouts)
        section = self.config.train
        spec = {"algorithm": section.algorithm, "algorithm_args": section.algorithm_args}
        spec["shape"] = self.config.shape.model_dump(mode="json")
        return self._artifact("shape", iteration, request, {"rollouts": str(rollouts.path), **spec})

    def score(self, iteration: int, policy: Artifact, rollouts: Artifact) -> dict[str, Artifact]:
        """Cached logprobs that the algorithm needs, by role: reference (the base model), proximal (the policy)."""
        needs = resolve(self.config.train.algorithm, self.config.train.algorithm_args).needs
        wanted = {"reference": self.base} if REFERENCE in needs else {}
        if PROXIMAL in needs:
            wanted["proximal"] = lambda: policy
        scores = {}
        for role, checkpoint_of in wanted.items():
            checkpoint = checkpoint_of()
            request = requests.score_request(self.config, rollouts, checkpoint)
            paths = {"rollouts": str(rollouts.path), "checkpoint": str(checkpoint.path)}
            scores[role] = self._artifact("score", iteration, request, paths)
        return scores

    def train(
        self, iteration: int, policy: Artifact, rollouts: Artifact, shaped: Artifact, scores: Mapping[str, Artifact]
    ) -> Artifact:
        """The next checkpoint."""
        request = requests.train_request(self.config, iteration, policy, rollouts, shaped, scores)
        if self.store.find(request) is None:
            self.warm_up()
        spec = {"policy": str(policy.path), "rollouts": str(rollouts.path), "shaped": str(shaped.path)}
        by_role = {role: str(artifact.path) for role, artifact in scores.items()}
        settings = self.config.train.model_dump(mode="json")
        return self._artifact("train", iteration, request, {**spec, "scores": by_role, "train": settings})

    def _artifact(self, stage: str, iteration: int, request: Request, spec: Event) -> Artifact:
        title = f"{stage} {iteration}"

        def make() -> Artifact:
            return load_artifact(self._process(f"pipeline.{stage}", title, {**spec, "request": request.to_json()})["artifact"])

        return self._found_or_made(title, request, make)

    def _found_or_made(self, title: str, request: Request, make: Callable[[], Artifact]) -> Artifact:
        found = self.store.find(request)
        if found is not None:
            self.on_stage(title, {"event": "found"})
            return found
        if self.only_look:
            raise Missing(title)
        return make()

    def warm_up(self) -> None:
        """Start the process of the next generate stage early: it loads its libraries while something else goes on."""
        if self._warm is None and not self.only_look:
            self._warm = StageProcess("pipeline.generate", self.config.directory / "logs" / "warm-up.log", engine_environment())

    def close(self) -> None:
        """End a process that was started early and not needed."""
        if self._warm is not None:
            self._warm.end()
            self._warm = None

    def _process(self, module: str, title: str, spec: dict[str, Any]) -> Event:
        if self.only_look:
            raise Missing(title)
        log = self.config.directory / "logs" / f"{title.replace(' ', '-')}.log"
        common = {"store": str(self.store.root), "trust_remote_code": self.config.model.trust_remote_code}
        self.on_stage(title, {"event": "started"})
        if module == "pipeline.generate" and self._warm is not None:
            process, self._warm = self._warm, None
        else:
            process = StageProcess(module, log, engine_environment())
        result = process.run({**common, **spec}, log, lambda event: self.on_stage(title, event))
        self.on_stage(title, {"event": "finished"})
        return result
