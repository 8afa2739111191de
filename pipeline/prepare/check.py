"""What `rollbook check` looks at: everything that can be wrong before a process is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.cell import BEHAVIOR, REFERENCE
from pipeline.common.claims import few_questions
from pipeline.common.errors import DataError, UserError
from pipeline.common.text import visible
from pipeline.config.course import Course
from pipeline.config.engine import EngineConfig
from pipeline.config.environment import EnvironmentConfig
from pipeline.config.heldout import by_set
from pipeline.config.phases import ReferenceConfig
from pipeline.config.reward import RewardComponent
from pipeline.config.run import RunConfig
from pipeline.config.shape import ShapeConfig
from pipeline.environments.registry import check_environment
from pipeline.generate.engines.devices import described as described_engines
from pipeline.generate.engines.devices import refuse_args, shares
from pipeline.look.trackers.tracker import tracker_module
from pipeline.prepare.cluster import look_at_cluster
from pipeline.prepare.others import Beside, beside
from pipeline.prepare.probing import look_at_graders
from pipeline.prepare.rehearsal import rehearse
from pipeline.prepare.room import lines_of, refuse_unfit, room_for
from pipeline.prepare.stops import hidden_by_stops
from pipeline.revise.experts import check_revise
from pipeline.rewards.graders.labels import only_value
from pipeline.rewards.registry import check_prompts, check_reward_config, notes_of
from pipeline.shape.informative import cannot_learn, imitates
from pipeline.shape.mix.shares import check_replay, described
from pipeline.shape.mix.tokens import check_tokens
from pipeline.shape.settings import check_history, check_shape
from pipeline.sources import models as base_model
from pipeline.sources import prompts
from pipeline.sources.dialogues import asked_of, shared_questions
from pipeline.sources.gguf_files import described as described_source
from pipeline.sources.gguf_files import made_from
from pipeline.sources.rendering import NO_CHAT_TEMPLATE, Rendering, template_renderer
from pipeline.sources.tokenizer import absent_tokens
from pipeline.sources.weights import refuse_incomplete
from pipeline.store import Store

NAME_WIDTH = 11
"""Characters of a line that hold its name."""


def check_algorithms(config: RunConfig) -> list[tuple[RunConfig, Algorithm]]:
    """The run's settings and algorithms, one after the other, if they fit.

    Raises:
        UserError: as `check_algorithm`; says which iteration it is, where they are several.
    """
    course, found = Course(config), []
    course.check()
    for number, here in course.distinct():
        try:
            found.append((here, check_algorithm(here)))
        except UserError as error:
            if not config.phases and not config.schedules:
                raise
            raise UserError(f"iteration {number}: {error}") from None
    return found


def check_algorithm(config: RunConfig) -> Algorithm:
    """The algorithm of an iteration, if it fits the iteration's sampling, shaping, replayed rollouts and graders.

    Raises:
        UserError: an unknown algorithm, setting or grader, or sampling, shaping or rollouts that the algorithm cannot use.
    """
    algorithm = check_training(config)
    if BEHAVIOR in algorithm.needs and config.generate.cuts_support:
        raise UserError(
            f"generate: {algorithm.name} needs the ratio pi/mu, and top_p, top_k or min_p cut the distribution that mu is. "
            "Use top_p: 1, top_k: 0, min_p: 0, or a method without a ratio (such as reinforce)"
        )
    if BEHAVIOR in algorithm.needs and config.generate.temperature == 0:
        raise UserError(
            f"generate.temperature: {algorithm.name} needs the ratio pi/mu, which greedy completions do not have; use a value "
            "above 0"
        )
    return algorithm


def check_training(config: RunConfig) -> Algorithm:
    """The run's algorithm, if it fits the run's shaping, replayed rollouts and graders, wherever its own rollouts are from.

    Raises:
        UserError: an unknown algorithm, setting or grader, or shaping or rollouts that the algorithm cannot use.
    """
    algorithm = resolve(config.train.algorithm, config.train.algorithm_args, config.plugins)
    check_reward_config(config.reward)
    check_environment(config.environment)
    check_shape(config.shape, algorithm)
    check_history(config.environment, algorithm)
    check_replay(config.replay, algorithm)
    check_revise(config.revise)
    return algorithm


def check_config(config: RunConfig) -> list[str]:
    """Look at everything a run will need. Returns what was found, a line each.

    Raises:
        UserError: the first thing that is wrong.
    """
    settings = check_algorithms(config)
    if config.track.to:
        tracker_module(config.track.to)
    algorithms = {algorithm.name: algorithm for _, algorithm in settings}
    for algorithm in algorithms.values():
        if algorithm.source:
            rehearse(algorithm)
    directory = base_model.locate(config.model)
    files = base_model.model_files(directory, trust_remote_code=config.model.trust_remote_code)
    refuse_incomplete(files["config.json"].parent, trust_remote_code=config.model.trust_remote_code)
    others = Beside()
    if "tokenizer.json" in files:
        for here, _ in settings:
            check_tokens(here.replay, files["tokenizer.json"])
        others = beside(settings, files)
        for here, _ in settings:
            check_reviser(here)
    absent = absent_tokens(files["config.json"].parent)
    template_renderer(config.data.template)
    if config.data.chat and not base_model.has_chat_template(files):
        raise UserError(NO_CHAT_TEMPLATE)
    rendering = Rendering.of(config, files["config.json"].parent)
    train, train_bad = prompts.load_once(config.data.train, rendering)
    heldout, heldout_bad = prompts.load_once(config.data.heldout, rendering)
    shared = shared_questions(heldout, train)
    if len(shared) and not config.data.allow_overlap:
        raise DataError(f"{config.data.heldout.path}: {len(shared)} held-out questions are also in {config.data.train.path}")
    for source, frame in ((config.data.train, train), (config.data.heldout, heldout)):
        check_prompts(config.reward.components, frame.to_dicts, source.path)
    sets = [look_at_set(here, one.name, train, files["config.json"].parent) for one, here in by_set(config)]
    for _, algorithm in settings:
        refuse_one_sided(config.reward.components, algorithm)
    graded = look_at_graders(config, train)
    nodes, slow = look_at_cluster(config)
    longest = rendering.about_longest(asked_of(train)) + config.generate.max_tokens
    room = room_for(config, files, min(longest, rendering.context or longest), others)
    if room is not None:
        refuse_unfit(room, config)
    bads = ((config.data.train.path, train_bad), (config.data.heldout.path, heldout_bad))
    lines = [
        f"model      {config.model.path} ({_architecture(files['config.json'])})",
        *([f"weights    {described_source(made)}"] if (made := made_from(directory)) else []),
        f"prompts    {len(train)} for training, {len(heldout)} held out{''.join(f', {text}' for text in sets)}",
        *(f"set aside  {len(bad)} rows of {path}: {bad['place'][0]}, {bad['why'][0]}" for path, bad in bads if len(bad)),
        *([f"episodes   {_episodes(config.environment)}"] if config.environment else []),
        f"rewards    {', '.join(component.column for component in config.reward.components)}",
        *(f"{name:{NAME_WIDTH}}{text}" for name, text in graded if name != "warning"),
        *(f"algorithm  {algorithm.name}: {algorithm.summary}" for algorithm in algorithms.values()),
        *dict.fromkeys(f"replay     {described(here.replay)}" for here, _ in settings if here.replay.is_on),
        *dict.fromkeys(f"revise     {here.revise.described}" for here, _ in settings if here.revise.is_on),
        *([f"engine     {engines}"] if not nodes and (engines := _engines(config.engine)) else []),
        *(f"engine     {line}" for line in nodes),
        f"store      {Store(config.store_url).backend.describe()}",
        *(lines_of(room) if room else []),
        f"run        {config.iterations} x {config.generate.prompts} x {config.generate.samples} in {config.directory}",
    ]
    if config.phases or config.schedules:
        lines += [f"settings   {stretch}" for stretch in Course(config).table()]
    lines += [f"warning    {text}" for name, text in graded if name == "warning"]
    lines += [f"warning    {text}" for text in slow]
    if few := few_questions(len(heldout)):
        lines.append(f"warning    {few}")
    lines += [
        f"warning    {config.model.path}: tokenizer_config.json names {name} {token!r}, which tokenizer.json does not have. It "
        "gets an id behind all others, for which the model may have no weights. Save the tokenizer anew, or mend that setting"
        for name, token in absent.items()
    ]
    positions = base_model.positions(files["config.json"])
    warnings = (warning for here, algorithm in settings for warning in warnings_of(here, algorithm, positions))
    lines += [f"warning    {warning}" for warning in dict.fromkeys(warnings)]
    return [*(visible(line) for line in lines), closing(lines, reward=any(name == "warning" for name, _ in graded))]


def closing(lines: Sequence[str], *, reward: bool) -> str:
    """The last line: how many warnings stand above it, and whether graders are among them.

    >>> closing(["warning    2 held-out questions"], reward=False)
    'ok, with 1 warning'
    """
    warnings = sum(line.startswith("warning ") for line in lines)
    if not warnings:
        return "ok"
    told = f"ok, with {warnings} warning{'s' * (warnings > 1)}"
    return f"{told}; as graders answer now, there may be nothing to learn from" if reward else told


def look_at_set(config: RunConfig, name: str, train: pl.DataFrame, model: Path) -> str:
    """A held-out set of `evaluate.sets`, if it can judge: how many prompts it has.

    Args:
        config: the run as the set sees it.
        train: the training prompts.
        model: its directory.

    Raises:
        UserError: as for the run's own held-out prompts.
    """
    source = config.data.heldout
    template_renderer(config.data.template)
    check_reward_config(config.reward)
    frame, _ = prompts.load_once(source, Rendering.of(config, model))
    if not config.data.allow_overlap and len(shared := shared_questions(frame, train)):
        raise DataError(f"evaluate.sets, {name}: {len(shared)} questions of {source.path} are also in {config.data.train.path}")
    check_prompts(config.reward.components, frame.to_dicts, source.path)
    return f"{len(frame)} in the set {name}"


def refuse_one_sided(components: Sequence[RewardComponent], algorithm: Algorithm) -> None:
    """Refuse labels that are all alike, where they are all that rewards are made of and the algorithm learns from differences.

    Raises:
        UserError: names the file and what all its labels are.
    """
    if len(components) != 1 or components[0].grader not in ("from_file", "human") or imitates(algorithm):
        return
    (component,), args = components, components[0].args
    label = args.get("label", "label" if component.grader == "human" else "reward")
    found = only_value(Path(args["path"]), label, args.get("values") or {})
    if found is not None and args.get("missing") is None:
        raise UserError(
            f"reward.components.0 ({component.grader}): {args['path']}, column {label}: every label is {found}, so that no "
            f"completion is better than another, and {algorithm.name} learns from differences. Label what is worse too, or use a "
            "method that imitates, such as sft"
        )


def check_reviser(config: RunConfig) -> None:
    """Look at a judge model that vLLM is to run.

    Raises:
        UserError: no model there.
    """
    if config.revise.is_on and config.revise.by == "model":
        section = config.model.model_copy(update={"path": str(config.revise.model), "revision": None})
        try:
            base_model.model_files(base_model.locate(section), trust_remote_code=section.trust_remote_code)
        except UserError as error:
            raise UserError(f"revise.model: {str(error).removeprefix('model.path: ')}") from None


def _episodes(config: EnvironmentConfig) -> str:
    """What answers within a completion."""
    return f"{config.name} answers, at most {config.max_turns} turns, {config.in_flight} at once"


def _engines(config: EngineConfig) -> str | None:
    """Servers, or several engines of this machine; None for one."""
    if config.server:
        return ", ".join(config.server.url)
    try:
        return described_engines(shares(config))
    except UserError:  # of which `warnings_of` tells
        return None


def warnings_of(config: RunConfig, algorithm: Algorithm, positions: int | None) -> Iterator[str]:
    """What a run can be started with and is hardly meant.

    Args:
        positions: tokens that the model takes, if it says so.
    """
    if warning := algorithm.warning(config.train.epochs):
        yield warning
    if config.reference != ReferenceConfig(iteration=0) and REFERENCE not in algorithm.needs:
        yield f"reference is {config.reference}, and {algorithm.name} with these settings reads no reference"
    if config.shape.tool_bonus and config.environment is None:
        yield "shape.tool_bonus: no environment answers within completions, so no tool is called and nothing earns it"
    yield from _of_turns(config)
    yield from notes_of(config.reward.components)
    if not config.generate.keep_stop_text:
        yield from hidden_by_stops(config.reward.components, config.generate.stop)
    if not config.revise.is_on:  # pairs and rewards are then those of the revisions
        yield from cannot_learn(config.generate.samples, config.generate.max_tokens, config.shape, algorithm)
    if not config.engine.server and not config.cluster:
        try:
            shares(config.engine)
            refuse_args(config.engine)
        except UserError as refusal:  # the machine that will generate may be another one
            yield str(refusal)
    context = min((limit for limit in (positions, config.engine.max_model_len) if limit), default=None)
    if context and config.generate.max_tokens >= context:
        what = "engine.max_model_len" if context == config.engine.max_model_len else "the model's context"
        yield (
            f"generate.max_tokens is {config.generate.max_tokens}, and {what} is {context} tokens, prompt and completion "
            "together: completions are cut before max_tokens"
        )


def _of_turns(config: RunConfig) -> Iterator[str]:
    """Settings of turns where completions have none."""
    for name in ("credit", "void_turns"):
        value = getattr(config.shape, name)
        if config.environment is None and value != ShapeConfig.model_fields[name].default:
            yield f"shape.{name}: {value}: no environment answers within completions, so each is one turn"


def named(lines: list[str]) -> list[tuple[str, str]]:
    """What `check_config` found, without its closing line: the name at the beginning of each line, and the rest."""
    return [(line[:NAME_WIDTH].strip(), line[NAME_WIDTH:]) for line in lines[:-1]]


def _architecture(config: Path) -> str:
    named = json.loads(config.read_text(encoding="utf-8")).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "unknown architecture"
