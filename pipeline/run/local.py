"""Stages answered on this machine: from the store where they are finished, else by a process that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.algorithms import resolve
from pipeline.algorithms.cells.cell import PROXIMAL, REFERENCE
from pipeline.config.data import PromptSource
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_request
from pipeline.generate.engine import engine_environment
from pipeline.generate.order import heldout_request, rollouts_request
from pipeline.generate.siblings import find_sibling
from pipeline.run.parts import Part
from pipeline.run.process import Event
from pipeline.run.processes import Processes
from pipeline.run.record import Answers
from pipeline.score.order import score_request
from pipeline.shape.mix.order import mix_request
from pipeline.shape.mix.shares import groups_of_each, sources_of
from pipeline.shape.order import shape_request
from pipeline.sources import models as base_model
from pipeline.sources import prompts
from pipeline.sources.prompts import Render, chat_renderer, template_renderer
from pipeline.sources.readers.order import import_request, prompts_request
from pipeline.sources.tokenizer import load_tokenizer
from pipeline.store import Artifact, Request, Store
from pipeline.store.store import load_artifact
from pipeline.train.order import train_request

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
        processes: shared ones that do the work; default: its own, which `close` ends.
    """

    def __init__(
        self,
        config: RunConfig,
        on_stage: OnStage = lambda stage, event: None,
        *,
        only_look: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.store = Store(config.store_url)
        self.on_stage = on_stage
        self.only_look = only_look
        self._own = Processes(engine_environment())
        self.processes = processes or self._own
        self.last: tuple[str, int] | None = None
        """The stage and iteration after which nothing is asked for; None: the run's end."""

    def base(self) -> Artifact:
        """The base model as the checkpoint of iteration 0."""
        section = self.config.model
        directory = base_model.locate(section)
        files = base_model.model_files(directory, trust_remote_code=section.trust_remote_code)
        hashes = base_model.hashes_of(files)
        original = base_model.original_of(directory, hashes)
        request = import_request(hashes, original)

        def make() -> Artifact:
            return base_model.import_model(self.store, request, files, section.path, original)

        return self._found_or_made("base model", request, make)

    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]:
        """Training prompts and held-out prompts."""
        train = self._prompts("training prompts", self.config.data.train, base, None)
        disjoint_from = None if self.config.data.allow_overlap else train
        return train, self._prompts("held-out prompts", self.config.data.heldout, base, disjoint_from)

    def _prompts(self, title: str, source: PromptSource, base: Artifact, disjoint_from: Artifact | None) -> Artifact:
        model = base if self.config.data.chat else None
        digest = prompts.source_hash(source)
        request = prompts_request(self.config, source, digest, model=model, disjoint_from=disjoint_from)

        def make() -> Artifact:
            return prompts.make_prompts(self.store, request, source, self._renderer(base), disjoint_from)

        return self._found_or_made(title, request, make)

    def _renderer(self, base: Artifact) -> Render:
        data = self.config.data
        if not data.chat:
            return template_renderer(data.template)
        base.verify()
        tokenizer = load_tokenizer(base.path, trust_remote_code=self.config.model.trust_remote_code)
        return chat_renderer(tokenizer, data.template, data.system)

    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers:
        """Everything that a checkpoint must answer. `train` is None for the last checkpoint."""
        wanted = {"sampled": (heldout_request(self.config, policy, heldout, greedy=False), heldout)}
        if self.config.evaluate.greedy:
            wanted["greedy"] = heldout_request(self.config, policy, heldout, greedy=True), heldout
        if train is not None:
            wanted["rollouts"] = rollouts_request(self.config, iteration, policy, train), train
        found = self.answers(f"generate {iteration}", policy, wanted)
        return Answers(found["sampled"], found.get("greedy"), found.get("rollouts"))

    def answers(self, title: str, policy: Artifact, wanted: Mapping[str, tuple[Request, Artifact]]) -> dict[str, Artifact]:
        """Rollouts artifacts of one policy, by name.

        Args:
            wanted: request and prompts of each.
        """
        found = {name: artifact for name, (request, _) in wanted.items() if (artifact := self.store.find(request))}
        if len(found) == len(wanted):
            self.on_stage(title, {"event": "found"})
            return found
        found |= self._regraded(title, {name: both for name, both in wanted.items() if name not in found})
        if len(found) == len(wanted):
            return found
        jobs = [{"request": request.to_json(), "prompts": str(source.path)} for request, source in wanted.values()]
        spec = {"engine": self.config.engine.model_dump(mode="json"), "reward": self.config.reward.model_dump(mode="json")}
        result = self._process(self._generator, title, {**spec, "policy": str(policy.path), "jobs": jobs})
        return {name: load_artifact(path) for name, path in zip(wanted, result["artifacts"], strict=True)}

    @property
    def _generator(self) -> str:
        """The module of the generate stage."""
        return "pipeline.generate.server" if self.config.engine.server else "pipeline.generate"

    def _regraded(self, title: str, wanted: Mapping[str, tuple[Request, Artifact]]) -> dict[str, Artifact]:
        """Of wanted rollouts, those whose completions are stored with other rewards: graded, not generated anew."""
        stored = {name: sibling for name, (request, _) in wanted.items() if (sibling := find_sibling(self.store, request))}
        if not stored or (self.only_look and len(stored) < len(wanted)):
            return {}
        jobs = [
            {"request": request.to_json(), "rollouts": str(stored[name].path), "prompts": str(prompts.path)}
            for name, (request, prompts) in wanted.items()
            if name in stored
        ]
        spec = {"reward": self.config.reward.model_dump(mode="json"), "jobs": jobs}
        result = self._process("pipeline.regrade", title.replace("generate", "grade"), spec)
        return {name: load_artifact(path) for name, path in zip(stored, result["artifacts"], strict=True)}

    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact:
        """Figures of a checkpoint."""
        request = evaluate_request(self.config, policy, answers.sampled, answers.greedy)
        greedy = str(answers.greedy.path) if answers.greedy else None
        return self._artifact("evaluate", iteration, request, {"sampled": str(answers.sampled.path), "greedy": greedy})

    def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
        """Advantages and weights."""
        return self._artifact("shape", iteration, *self._shaping(iteration, rollouts))

    def _shaping(self, iteration: int, rollouts: Artifact) -> tuple[Request, Event]:
        section = self.config.train
        spec = {"algorithm": section.algorithm, "algorithm_args": section.algorithm_args}
        spec["shape"] = self.config.shape.model_dump(mode="json")
        return shape_request(self.config, iteration, rollouts), {"rollouts": str(rollouts.path), **spec}

    def replay(self, iteration: int, fresh: Part, earlier: Sequence[Artifact]) -> tuple[Part, ...]:
        """What is trained on beside an iteration's own rollouts: others, shaped, with the groups that are drawn for it.

        Args:
            earlier: rollouts of all earlier iterations, newest first.
        """
        title = f"replay {iteration}"
        sources = sources_of(self.config.replay, fresh.rollouts, earlier)
        if not sources:
            return ()
        wholes = []
        for source in sources:
            request, spec = self._shaping(iteration, source.rollouts)
            wholes.append(self.store.find(request) or self._made("shape", title, request, spec))
        weights, there = [source.weight for source in sources], [whole.summary["kept_groups"] for whole in wholes]
        counts = groups_of_each(self.config.replay, fresh.shaped.summary["kept_groups"], weights, there)
        whole_parts = [Part(source.rollouts, whole) for source, whole in zip(sources, wholes, strict=True)]
        return self._drawn(iteration, title, [(part, count) for part, count in zip(whole_parts, counts, strict=True) if count])

    def _drawn(self, iteration: int, title: str, parts: Sequence[tuple[Part, int]]) -> tuple[Part, ...]:
        """The parts with that many of their groups; those that give all of them as they are."""
        wanted = {
            number: mix_request(self.config, iteration, part.rollouts, part.shaped, count)
            for number, (part, count) in enumerate(parts)
            if count < part.shaped.summary["kept_groups"] or self.config.replay.loss_weight != 1
        }
        found = {number: self.store.find(request) for number, request in wanted.items()}
        if not all(found.values()):
            jobs = [{"request": request.to_json(), "shaped": str(parts[n][0].shaped.path)} for n, request in wanted.items()]
            paths = self._process("pipeline.shape.mix", title, {"jobs": jobs})["artifacts"]
            found = {number: load_artifact(path) for number, path in zip(wanted, paths, strict=True)}
        elif parts:
            self.on_stage(title, {"event": "found"})
        return tuple(Part(part.rollouts, found.get(number) or part.shaped) for number, (part, _) in enumerate(parts))

    def score(self, iteration: int, policy: Artifact, rollouts: Artifact) -> dict[str, Artifact]:
        """Cached logprobs that the algorithm needs, by role: reference (the base model), proximal (the policy)."""
        needs = resolve(self.config.train.algorithm, self.config.train.algorithm_args, self.config.plugins).needs
        wanted = {"reference": self.base} if REFERENCE in needs else {}
        if PROXIMAL in needs:
            wanted["proximal"] = lambda: policy
        scores = {}
        for role, checkpoint_of in wanted.items():
            checkpoint = checkpoint_of()
            request = score_request(self.config, rollouts, checkpoint)
            paths = {"rollouts": str(rollouts.path), "checkpoint": str(checkpoint.path)}
            settings = self.config.train.model_dump(mode="json")
            scores[role] = self._artifact("score", iteration, request, {**paths, "train": settings})
        return scores

    def train(self, iteration: int, policy: Artifact, parts: Sequence[Part]) -> Artifact:
        """The next checkpoint."""
        request = train_request(self.config, iteration, policy, parts)
        if self.store.find(request) is None and self.last != ("train", iteration):
            self.warm_up()
        spec = {"policy": str(policy.path), "parts": [part.to_json() for part in parts]}
        return self._artifact("train", iteration, request, {**spec, "train": self.config.train.model_dump(mode="json")})

    def _artifact(self, stage: str, iteration: int, request: Request, spec: Event) -> Artifact:
        title = f"{stage} {iteration}"
        return self._found_or_made(title, request, lambda: self._made(stage, title, request, spec))

    def _made(self, stage: str, title: str, request: Request, spec: Event) -> Artifact:
        return load_artifact(self._process(f"pipeline.{stage}", title, {**spec, "request": request.to_json()})["artifact"])

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
        if not self.only_look:
            self.processes.warm_up(self._generator, self.config.directory / "logs" / "warm-up.log")

    def close(self) -> None:
        """End the processes that wait for more work, but not those that were given."""
        self._own.close()

    def _process(self, module: str, title: str, spec: dict[str, Any]) -> Event:
        if self.only_look:
            raise Missing(title)
        common = {"store": str(self.store.root), "trust_remote_code": self.config.model.trust_remote_code}
        return self.work(module, title, {**common, "plugins": list(self.config.plugins), **spec})

    def work(self, module: str, title: str, spec: Event) -> Event:
        """Have a stage's process do its work. Returns its result."""
        log = self.config.directory / "logs" / f"{title.replace(' ', '-')}.log"
        self.on_stage(title, {"event": "started"})
        result = self.processes.run(module, spec, log, lambda event: self.on_stage(title, event))
        self.on_stage(title, {"event": "finished"})
        return result
