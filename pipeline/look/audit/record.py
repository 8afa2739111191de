"""The run's record against the store: it names what is there, and what is there was made as its config says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.algorithms import ALGORITHMS, plugins
from pipeline.common.errors import UserError
from pipeline.config.course import Course
from pipeline.config.heldout import by_set
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_request
from pipeline.generate.mixture.order import OTHER, version_of
from pipeline.generate.order import heldout_request, rollouts_request
from pipeline.look.audit.findings import Ledger, Spot
from pipeline.look.audit.holdings import Held, Shelf, unique_keys
from pipeline.look.audit.scope import Scope, can_be, references_in
from pipeline.revise.order import REVISER, revise_request
from pipeline.rewards.registry import BATCHED, settled
from pipeline.run.parts import Part
from pipeline.run.record import FORMAT, RECORD
from pipeline.score.order import score_request
from pipeline.shape.order import shape_request
from pipeline.sources.order import prompts_request
from pipeline.store import Artifact, Request
from pipeline.train.order import train_request
from schemas.manifest import UNSEALED, seal_holds

RERUN = "Restore it from a copy, or run the same command again: finished work is found, and the record is written anew."
RULE = RewardComponent(grader="exact_match")
"""Stands in for graders of the user's own, which an audit does not import, and for those whose file or model may be gone."""


def check_record(scope: Scope, shelf: Shelf, ledger: Ledger) -> None:
    """Report what is wrong with a run's record, and where it differs from the store."""
    spot = ledger.at(file=RECORD)
    record = _read(scope, spot)
    if record is None:
        return
    assert scope.directory is not None
    there = _References(scope.directory, shelf, spot)
    for reference in references_in(record):
        there.check(reference)
    try:
        config = RunConfig.model_validate(record["config"])
        _Recipes(config, there, ledger).check(record)
        _check_end(record, config, spot)
    except ValidationError as error:
        said = {"expected": "a config of this version of rollbook", "found": " ".join(str(error).split())}
        spot.unknown("lineage", "config", **said, remedy="Audit it with the version of rollbook that wrote it.")
    except UserError as error:
        remedy = "Audit it with the version of rollbook, and the packages, that made the run."
        spot.unknown("lineage", "config", expected="settings that this version knows", found=str(error), remedy=remedy)
    except (KeyError, TypeError, AttributeError) as error:
        found = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        spot.error("lineage", "record", expected="a run record", found=found, remedy=RERUN)


def _read(scope: Scope, spot: Spot) -> dict[str, Any] | None:
    assert scope.record is not None
    if scope.record.is_symlink():
        said = {"expected": "a regular file", "found": "a link", "remedy": RERUN}
        spot.error("lineage", "record", **said)
    try:
        text = scope.record.read_bytes().decode()
        record = json.loads(text, object_pairs_hook=unique_keys)
    except FileNotFoundError:
        spot.warning("lineage", "record", expected="the record of the run", found="no such file", remedy=RERUN)
        return None
    except OSError as error:
        remedy = "Make it readable, and audit again."
        spot.unknown("lineage", "record", expected="a file that can be read", found=str(error.strerror), remedy=remedy)
        return None
    except (ValueError, RecursionError) as error:
        spot.error("lineage", "record", expected="a run record", found=" ".join(str(error).split()), remedy=RERUN)
        return None
    written_as = record.get("format") if isinstance(record, dict) else None
    if not isinstance(written_as, str) or written_as != FORMAT:
        remedy = "Audit it with the version of rollbook that wrote it; if this one did, restore the file."
        spot.unknown("lineage", "format", expected=FORMAT, found=str(written_as), remedy=remedy)
    seal = record.get("seal", UNSEALED) if isinstance(record, dict) else UNSEALED
    if seal == UNSEALED:
        spot.warning("lineage", "seal", expected="a seal", found="none", remedy=RERUN)
    elif not seal_holds(text, str(seal)):
        said = {"expected": "the file's bytes as they were written", "found": "other bytes than those that were sealed"}
        spot.error("lineage", "seal", **said, remedy=RERUN)
    return record if isinstance(record, dict) else None


def _check_end(record: Mapping[str, Any], config: RunConfig, spot: Spot) -> None:
    """A run that says it is complete has an evaluated checkpoint after every iteration, unless a rule ended it."""
    evaluated = sum(entry["evaluation"] is not None for entry in record["iterations"])
    if record["missing"] is None and not record.get("stopped") and evaluated != config.iterations + 1:
        expected = f"{config.iterations + 1} evaluated checkpoints"
        spot.error("lineage", "complete", expected=expected, found=f"{evaluated}", remedy=RERUN, column="iterations")
    for number, entry in enumerate(record["iterations"]):
        trained = record["iterations"][number - 1]["checkpoint"] if number else entry["policy"]
        if entry["iteration"] != number or (entry["policy"] or {}).get("id") != (trained or {}).get("id"):
            expected, found = "the checkpoint that the iteration before trained", str((entry["policy"] or {}).get("id"))
            spot.error("lineage", "chain", expected=expected, found=found, remedy=RERUN, column=f"iterations.{number}.policy")


class _References:
    """Artifacts that the record names."""

    def __init__(self, directory: Path, shelf: Shelf, spot: Spot) -> None:
        self._directory, self._shelf, self._spot = directory, shelf, spot

    def check(self, reference: Mapping[str, str]) -> None:
        held = self._shelf.get(reference["id"]) if can_be(reference["path"], self._directory) else None
        self._spot.ledger.count("lineage", "artifacts that the record names", 0 if held is None else 1, 1)
        place = "/".join(reference["path"].rstrip("/").split("/")[-2:])
        if held is None:
            same = next((other for other in self._shelf.all if other.name == place), None)
            found = f"{place} has the id {same.id}" if same else "no artifact with that id"
            remedy = "Restore the artifact from a copy; a run of the same command makes it anew."
            expected = f"{reference['kind']} {reference['id']} at {place}"
            self._spot.error("lineage", "named artifact", expected=expected, found=found, remedy=remedy)
        elif held.name != place or held.kind != reference["kind"]:
            said = {"expected": f"{reference['kind']} at {place}", "found": held.name}
            self._spot.error("lineage", "named artifact", **said, remedy=RERUN)

    def get(self, reference: Mapping[str, str] | None) -> Held | None:
        return self._shelf.get(reference["id"]) if reference else None

    def parent(self, held: Held, role: str) -> Held | None:
        return self._shelf.parent(held, role)


class _Recipes:
    """Whether the store's artifacts are those that the record's config asks for."""

    def __init__(self, config: RunConfig, there: _References, ledger: Ledger) -> None:
        self._there, self._ledger = there, ledger
        self._config = _ruled(config).model_copy(update={"plugins": ()})
        self._reward = config.reward
        self._sets = {one.name: (_ruled(here), here.reward) for one, here in by_set(config)}
        self._course = Course(self._config)
        self._has_plugins = bool(config.plugins)

    def check(self, record: Mapping[str, Any]) -> None:
        for held, request in self._asked(record):
            self._ledger.count("lineage", "artifacts made as the record's config says", 1)
            self._compare(held, request)

    def _asked(self, record: Mapping[str, Any]) -> Iterator[tuple[Held, Request]]:
        """Every artifact of the run with the request that it should be the answer to."""
        get, data = self._there.get, self._config.data
        train, heldout = get(record["train_prompts"]), get(record["heldout_prompts"])
        base = get(record["iterations"][0]["policy"]) if record["iterations"] else None
        apart = None if data.allow_overlap else train
        sets = {name: get(reference) for name, reference in record.get("set_prompts", {}).items() if name in self._sets}
        asked = [(self._config, data.train, train, None), (self._config, data.heldout, heldout, apart)]
        asked += [((here := self._sets[name][0]), here.data.heldout, prompts, apart) for name, prompts in sets.items()]
        for config, source, prompts, other in asked:
            if prompts is not None:
                digest = str(_part(prompts.recipe, "source").get("hash"))
                model = _artifact(base) if data.chat else None
                yield prompts, prompts_request(config, source, digest, model=model, disjoint_from=_artifact(other))
        for entry in record["iterations"]:
            policy = get(entry["policy"])
            yield from self._judged(policy, entry, heldout, self._config, self._reward)
            for name, prompts in sets.items():
                yield from self._judged(policy, entry.get("sets", {}).get(name, {}), prompts, *self._sets[name])
            yield from self._drawn(entry, record, train)
            yield from self._trained(entry, record)

    def _judged(
        self, policy: Held | None, parts: Mapping[str, Any], prompts: Held | None, config: RunConfig, reward: RewardConfig
    ) -> Iterator[tuple[Held, Request]]:
        """Held-out answers and their figures, by the settings that asked for them."""
        sampled, greedy, evaluation = (self._there.get(parts.get(role)) for role in ("sampled", "greedy", "evaluation"))
        if policy is None:
            return
        for answers, is_greedy in ((sampled, False), (greedy, True)):
            if answers is not None and prompts is not None:
                request = heldout_request(self._on(answers, config), policy.artifact, prompts.artifact, greedy=is_greedy)
                yield answers, self._graded(request, answers, reward)
        if evaluation is not None and sampled is not None:
            yield evaluation, evaluate_request(config, policy.artifact, sampled.artifact, _artifact(greedy))

    def _drawn(self, entry: Mapping[str, Any], record: Mapping[str, Any], train: Held | None) -> Iterator[tuple[Held, Request]]:
        """Rollouts that are trained on."""
        policy, rollouts = self._there.get(entry["policy"]), self._there.get(entry["rollouts"])
        if policy is not None and rollouts is not None and train is not None:
            here = self._on(rollouts, self._course.at(entry["iteration"]))
            other = self._other(here, record, entry["iteration"], rollouts)
            request = rollouts_request(here, entry["iteration"], policy.artifact, train.artifact, _artifact(other))
            yield rollouts, self._graded(request, rollouts, self._reward)

    def _trained(self, entry: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[tuple[Held, Request]]:
        number = entry["iteration"]
        if entry["shaped"] is None:
            return
        here = self._course.at(number)
        if self._is_foreign(name := here.train.algorithm):
            why = f"not compared: {name} is an algorithm of a plugin or a package, which an audit does not import"
            said = {
                "expected": "the settings of the record's config",
                "found": why,
                "remedy": "Nothing says that they are wrong.",
            }
            self._ledger.at(file=RECORD).note("lineage", "algorithm", **said, column="config.train.algorithm")
            return
        get = self._there.get
        policy, rollouts, shaped, made = (get(entry[name]) for name in ("policy", "rollouts", "shaped", "checkpoint"))
        revised, prompts = get(entry.get("revised")), get(record["train_prompts"])
        if policy is None or rollouts is None or shaped is None:
            return
        if revised is not None:
            if prompts is not None:
                yield revised, self._revision(self._on_reviser(revised, here), revised, policy, prompts, rollouts)
            rollouts = revised
        yield shaped, shape_request(here, number, rollouts.artifact)
        scores = {role: held for role, reference in entry["scores"].items() if (held := get(reference))}
        for role, held in scores.items():
            checkpoint = self._reference(here, record, number) if role == "reference" else policy
            if checkpoint is not None:
                yield held, score_request(self._on(held, here), rollouts.artifact, checkpoint.artifact)
        parts = [Part(rollouts.artifact, shaped.artifact, {role: held.artifact for role, held in scores.items()})]
        for replayed in entry.get("replayed") or ():
            found = {role: held.artifact for role, reference in replayed.items() if (held := get(reference))}
            if len(found) < len(replayed):
                return  # reported where references are checked
            parts.append(Part(found.pop("rollouts"), found.pop("shaped"), found))
        if made is not None and len(scores) == len(entry["scores"]):
            yield made, train_request(self._on(made, here), number, policy.artifact, parts)

    def _revision(self, here: RunConfig, revised: Held, policy: Held, prompts: Held, rollouts: Held) -> Request:
        """What corrections should be the answer to. A hash of a function or a file is as the artifact has it: neither is read."""
        by = _part(revised.recipe, "by")
        source = by.get("source") or by.get("file")
        reviser = self._there.parent(revised, REVISER)
        return revise_request(here, policy.artifact, prompts.artifact, rollouts.artifact, _artifact(reviser), source)

    def _on_reviser(self, revised: Held, config: RunConfig) -> RunConfig:
        """A config on the machine that made corrections: there, dtype auto was resolved."""
        dtype = _part(revised.recipe, "by").get("dtype")
        return _with_dtype(config, dtype)

    def _is_foreign(self, algorithm: str) -> bool:
        """Whether an algorithm is code that an audit does not import."""
        return algorithm not in ALGORITHMS and (self._has_plugins or algorithm in plugins.installed())

    def _reference(self, here: RunConfig, record: Mapping[str, Any], number: int) -> Held | None:
        """The model whose logprobs an iteration's reference are, as the config says."""
        version = here.reference.version(number)
        entries = [entry for entry in record["iterations"] if entry["iteration"] == (number if version is None else version)]
        references = [entry.get("reference") if version is None else entry["policy"] for entry in entries]
        return self._there.get(references[0]) if references else None

    def _other(self, here: RunConfig, record: Mapping[str, Any], number: int, rollouts: Held) -> Held | None:
        """The model that an iteration's completions were to be drawn by beside its policy; None for the policy alone."""
        mixture = here.generate.mixture
        if mixture is None or mixture.share == 0:
            return None
        version = version_of(here, number)
        if version is None:  # a model from elsewhere: the rollouts say which one
            return self._there.parent(rollouts, OTHER)
        found = {entry["iteration"]: entry["policy"] for entry in record["iterations"]}
        return None if found[version]["id"] == found[number]["id"] else self._there.get(found[version])

    def _on(self, held: Held, config: RunConfig) -> RunConfig:
        """A config on the machine that made an artifact: there, dtype auto was resolved."""
        return _with_dtype(config, held.recipe.get("dtype"))

    def _graded(self, request: Request, held: Held, reward: RewardConfig) -> Request:
        """The request with the hashes of graders' sources as the artifact has them, if its graders are those of the config."""
        if not _is_own(reward):
            return request
        stated = held.recipe.get("reward") or []
        named = [{name: value for name, value in component.items() if name != "source"} for component in stated]
        components = [settled(component) for component in reward.components]
        asked = stated if named == components else components
        return dataclasses.replace(request, recipe={**request.recipe, "reward": asked})

    def _compare(self, held: Held, request: Request) -> None:
        content = held.manifest.content
        if request.key == content.key:
            return
        said: dict[str, Any] = {"remedy": "The record and the artifact are of different runs: restore one of them from a copy."}
        differences = list(_differences(request.recipe, content.recipe, ""))
        asked = [parent.model_dump() for parent in request.parents]
        stated = [parent.model_dump() for parent in content.parents]
        if asked != stated:
            differences.append(("parents", asked, stated))
        if request.stage.partition("/")[0] != content.stage.partition("/")[0]:
            differences.append(("stage", request.stage, content.stage))
        elif request.stage != content.stage:
            self._note_version(held, request)
        for name, expected, stated in differences:
            wanted = f"{expected!r}, as {RECORD} says"
            held.spot(self._ledger, "manifest.json").error(
                "lineage", "recipe", expected=wanted, found=stated, column=f"content.recipe.{name}", **said
            )

    def _note_version(self, held: Held, request: Request) -> None:
        found = f"{held.manifest.content.stage}: made by another version of the stage"
        remedy = "Nothing says that it is wrong. A run of the same command makes it anew with this version."
        said: dict[str, Any] = {"expected": request.stage, "found": found, "remedy": remedy}
        held.spot(self._ledger, "manifest.json").note("lineage", "stage", **said, column="content.stage")


def _with_dtype(config: RunConfig, dtype: Any) -> RunConfig:
    """A config whose dtype auto means this one."""
    if dtype not in ("float32", "bfloat16") or config.model.dtype != "auto":
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


def _is_own(reward: RewardConfig) -> bool:
    """Whether a grader is the user's own code, or needs a file or a model that may be gone."""
    return any(":" in component.grader or component.grader in BATCHED for component in reward.components)


def _ruled(config: RunConfig) -> RunConfig:
    """A config whose graders can be asked what they are without running anything of the user's."""
    reward = config.reward.model_copy(update={"components": (RULE,)}) if _is_own(config.reward) else config.reward
    return config.model_copy(update={"reward": reward, "plugins": ()})


def _part(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a recipe; nothing if it has none."""
    value = recipe.get(name)
    return value if isinstance(value, dict) else {}


def _artifact(held: Held | None) -> Artifact | None:
    return held.artifact if held else None


def _differences(asked: Any, stated: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Settings that both have and that differ. What only one of them knows is of another version of rollbook."""
    if isinstance(asked, dict) and isinstance(stated, dict):
        for name in asked.keys() & stated.keys():
            yield from _differences(asked[name], stated[name], f"{path}.{name}".lstrip("."))
    elif json.loads(json.dumps(asked)) != stated:
        yield path, asked, stated
