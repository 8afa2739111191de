"""The generate stage: one engine, or several, make every rollouts artifact that a checkpoint is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import DataError, StageFailed
from pipeline.common.other_work import OtherWork
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.config.environment import EnvironmentConfig
from pipeline.config.reward import RewardConfig
from pipeline.environments.host import Host, Key
from pipeline.generate.between import Between, between
from pipeline.generate.context import context_length
from pipeline.generate.engine import AnyEngine, CompletionRequest, EngineSource, Reply
from pipeline.generate.episodes import Episodes, action_of
from pipeline.generate.history import Rendered
from pipeline.generate.mixture.folder import MixedWith
from pipeline.generate.names import GroupNames
from pipeline.generate.seeds import select_prompts
from pipeline.generate.shards import Group, RolloutsJob, Shard, remarks_name, shards_of
from pipeline.generate.siblings import remember, unfinished_siblings
from pipeline.generate.summary import read_scalars, summarize
from pipeline.generate.turns import turn_figures, turns_beside, turns_name
from pipeline.generate.writer import ShardWriter, refuse_many_failures
from pipeline.rewards.items import prompt_for_grader
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import check_prompts, places_of
from pipeline.run.estimates import rollouts_bytes
from pipeline.run.process import Event, Reporter
from pipeline.sources.prompts import rows_of
from pipeline.sources.tokenizer import encode, load_tokenizer
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.layout import in_order
from pipeline.store.store import load_artifact, verified
from schemas import Prompts, Remarks, Rollouts, Turns
from schemas.rollouts import ENVIRONMENT_ERROR, ends_episode

PROGRESS_SECONDS = 0.5
PROBES = 4
"""Prompts that an engine with new weights answers for its check."""


def generate(spec: Event, reporter: Reporter, live: EngineSource) -> Event:
    """Make the rollouts artifacts of a spec, going on from shards that an earlier attempt finished.

    Args:
        spec: store, policy (path of the checkpoint artifact), trust_remote_code, engine, reward, and jobs: a list of
            {request, prompts (path of the artifact)}. With mixture {other (path of a checkpoint artifact), share}, tokens are
            drawn from the policy's mixture with it.
        live: the engines of this process, or the servers that it asks.

    Returns:
        {"artifacts": paths, in the order of the jobs}.

    Raises:
        UserError: a prompt longer than the context, or one that a grader cannot be asked about, a model vLLM cannot load, too
            many failed rewards.
        StageFailed: the engine failed, be it on every single completion.
        NeedsFreshProcess: this process's engine cannot take the checkpoint.
    """
    store = Store(spec["store"], reporter.note)
    policy = load_artifact(spec["policy"])
    reward = RewardConfig.model_validate(spec["reward"])
    requests = [Request.from_json(job["request"]) for job in spec["jobs"]]
    with ExitStack() as stack:
        # Locks are taken in one order by every process, so that two of them cannot wait for each other.
        order = sorted(range(len(requests)), key=lambda number: requests[number].key)
        works = {number: stack.enter_context(store.work(requests[number])) for number in order}
        open_works = {number: work for number, work in works.items() if isinstance(work, Work)}
        if open_works:
            for number in open_works:
                made = load_artifact(spec["jobs"][number]["prompts"])
                check_prompts(reward.components, partial(rows_of, made), made.url)
            policy.verify()
            if "mixture" in spec:
                verified(spec["mixture"]["other"])
            jobs = _Jobs(spec, policy, reward, open_works, store)
            others = OtherWork()
            jobs.generate(reporter, live)
            notes = live.notes if jobs.engine_config.server else {**live.notes, "other_work": others.cores()}
        done = [work if isinstance(work, Artifact) else _finish(work, reward, notes) for _, work in sorted(works.items())]
    return {"artifacts": [str(artifact.path) for artifact in done]}


class _Jobs:
    """The jobs that are not finished yet, their shards that are missing, failed or badly graded, and the engine that answers."""

    def __init__(self, spec: Event, policy: Artifact, reward: RewardConfig, works: dict[int, Work], store: Store) -> None:
        self.reward = reward
        self.works = works
        self.spec = spec
        self.policy = policy
        self.engine_config = EngineConfig.model_validate(spec["engine"])
        self.dtype = next(iter(works.values())).request.recipe["dtype"]
        self.tokenizer: Any = load_tokenizer(policy.path, trust_remote_code=spec["trust_remote_code"])
        self.known = frozenset(self.tokenizer.get_vocab().values())
        self.environment = EnvironmentConfig.model_validate(told) if (told := spec.get("environment")) else None
        self.context = context_length(policy.path, self.engine_config, trust_remote_code=spec["trust_remote_code"])
        jobs = [self._job(number, work, verified(spec["jobs"][number]["prompts"])) for number, work in works.items()]
        self.jobs = {job.number: job for job in jobs}
        self.shards: list[Shard] = []
        self.ungraded: list[tuple[Shard, Path]] = []
        for job in jobs:
            work = works[job.number]
            remember(work)
            siblings = unfinished_siblings(store, work)
            for shard in shards_of(job, work.request.recipe["shard_groups"]):
                if work.has_table(shard.name, Rollouts) and (
                    self.environment is None or work.has_table(turns_name(shard.name), Turns)
                ):
                    statuses = set(pl.read_parquet(work.path / shard.name, columns=["status"], glob=False)["status"])
                    if statuses == {"engine_error"} or ENVIRONMENT_ERROR in statuses:
                        self.shards.append(shard)
                    elif "reward_error" in statuses:
                        self.ungraded.append((shard, work.path / shard.name))
                elif stored := next((path for place in siblings if shard.is_in(path := place / shard.name)), None):
                    self.ungraded.append((shard, stored))
                else:
                    self.shards.append(shard)
        self.total = sum((shard.stop - shard.start) * shard.job.samples for shard in self.shards)

    def _job(self, number: int, work: Work, prompts: Artifact) -> RolloutsJob:
        recipe = work.request.recipe
        selection = recipe["selection"]
        frame = read_table(prompts, Prompts)
        frame = frame[select_prompts(len(frame), selection["prompts"], selection["iteration"] or 0, selection["seed"])]
        # A chat template writes its special tokens into the text; any other text gets those that the tokenizer adds.
        tokens = encode(self.tokenizer, frame["prompt_text"].to_list(), special=not prompts.recipe["chat"])
        completions = len(frame) * recipe["samples"]
        work.require_space(
            rollouts_bytes(completions, recipe["sampling"]["max_tokens"]), f"rollouts of {completions:,} completions"
        )
        names = GroupNames()
        groups = [Group(row, ids, names.next(row["prompt_id"])) for row, ids in zip(frame.to_dicts(), tokens, strict=True)]
        for group in groups:
            _refuse_misfit(group, self.context, prompts)
        return RolloutsJob(
            number=number,
            key=work.request.key,
            groups=groups,
            samples=recipe["samples"],
            sampling=SamplingConfig(**recipe["sampling"]),
            purpose=recipe["purpose"],
            iteration=selection["iteration"],
            run_seed=selection["seed"],
            policy_id=self.policy.id,
            policy_version=self.policy.summary["iteration"],
            rows=self.environment.rows if self.environment else 1,
        )

    def generate(self, reporter: Reporter, live: EngineSource) -> None:
        """Answer every missing shard, writing each as soon as it is whole and graded.

        Completions of an earlier attempt are graded again where rewards failed, or where other graders graded them: the
        grader may have been mended since.
        """
        if self.ungraded:
            with RewardPool(self.reward) as pool, self._writer(pool) as writer:
                for shard, stored in self.ungraded:
                    writer.restore(shard, pl.read_parquet(stored, glob=False), turns_beside(stored))
                    writer.hold()
        if not self.shards:
            return
        for text in vain_stops(self.tokenizer, self.policy.path, [text for s in self.shards for text in s.job.sampling.stop]):
            reporter.note(
                f"generate.stop: {text!r} holds a special token, which texts leave out, so it ends no completion. Such tokens "
                "end one if eos_token_id in the model's generation_config.json names them"
            )
        probes = [shard.job.groups[shard.start].prompt_token_ids for shard in self.shards[:PROBES]]
        trust_remote_code = self.spec["trust_remote_code"]
        cluster = ClusterConfig.model_validate(self.spec["cluster"]) if self.spec.get("cluster") else None
        engine = live.engine_for(
            self.policy,
            self.engine_config,
            self.dtype,
            probes,
            reporter,
            trust_remote_code=trust_remote_code,
            mixed=MixedWith(**self.spec["mixture"]) if "mixture" in self.spec else None,
            cluster=cluster,
        )
        reporter.ready()
        for shard in self.shards:
            shard.engine = engine.name
        with ExitStack() as stack:
            if self.environment is not None:
                writes = self._between()
                history = self._history() if self.environment.history == "rendered" else None
                for note in writes.notes(anew=history is not None):
                    reporter.note(note)
                host = stack.enter_context(Host(self.environment, model=self.policy.path))
                engine = self._episodes(engine, host, self.environment, writes, history)
            pool = stack.enter_context(RewardPool(self.reward))
            writer = stack.enter_context(self._writer(pool))
            for note in pool.notes:
                reporter.note(note)
            self._answer(engine, writer, _TokenMeter(reporter, self.total))
        live.rest()

    def _between(self) -> Between:
        (recipe, *others) = [verified(job["prompts"]).recipe for job in self.spec["jobs"]]
        assert all(other["chat"] == recipe["chat"] for other in others)
        return between(self.tokenizer, recipe)

    def _history(self) -> dict[int, Rendered]:
        return {number: Rendered(self.tokenizer, verified(self.spec["jobs"][number]["prompts"]).recipe) for number in self.jobs}

    def _episodes(
        self,
        engine: AnyEngine,
        host: Host,
        environment: EnvironmentConfig,
        writes: Between,
        history: Mapping[int, Rendered] | None,
    ) -> Episodes:
        def prompt_of(key: Key) -> Mapping[str, Any]:
            return prompt_for_grader(self.jobs[key[0]].groups[key[1]].row)

        def text_of_turn(turn: Reply) -> str:
            keep_stop = self.jobs[turn.key[0]].sampling.keep_stop_text
            return action_of(turn, self.tokenizer, keep_stop=keep_stop, special=host.reads_special_tokens)

        return Episodes(
            engine,
            host,
            environment,
            self.context,
            prompt_of=prompt_of,
            action_of=text_of_turn,
            between=writes,
            history=history,
        )

    def _answer(self, engine: AnyEngine, writer: ShardWriter, meter: _TokenMeter) -> None:
        by_start = {(shard.job.number, shard.start): shard for shard in self.shards}
        sizes = {number: work.request.recipe["shard_groups"] for number, work in self.works.items()}
        for replies in engine.run(self._asks(), in_flight=2 * self.engine_config.max_num_seqs):
            for reply in replies:
                job, group, _ = reply.key
                writer.add(by_start[job, group - group % sizes[job]], reply)
                meter.count(len(reply.token_ids))
            writer.hold()
            meter.report(engine.tokens)
        meter.report(engine.tokens, last=True)

    def _writer(self, pool: RewardPool) -> ShardWriter:
        most = self.environment.max_failed_share if self.environment else 1.0
        return ShardWriter(self.works, self.reward, self.tokenizer, self.known, pool, most)

    def _asks(self) -> Iterator[Sequence[CompletionRequest]]:
        for shard in self.shards:
            for _, group in groupby(shard.job.asks(shard), key=lambda ask: ask.key[:2]):
                yield list(group)


class _TokenMeter:
    """Progress in completions, speed in tokens per second."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter, self._total = reporter, total
        self._done = self._tokens = 0
        self._start = self._told = time.monotonic()

    def count(self, tokens: int) -> None:
        self._done += 1
        self._tokens += tokens

    def report(self, of_each: Sequence[int], last: bool = False) -> None:
        """
        Args:
            of_each: tokens of each of several engines.
        """
        now = time.monotonic()
        if last or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            seconds = max(now - self._start, 1e-9)
            speeds = {"replicas": [tokens / seconds for tokens in of_each]} if len(of_each) > 1 else {}
            self._reporter.progress(
                self._done,
                self._total,
                "completions",
                tokens=self._tokens,
                tokens_per_second=self._tokens / seconds,
                **speeds,
            )


def vain_stops(tokenizer: Any, model: Path, stops: Iterable[str]) -> list[str]:
    """Stop texts with a special token that does not end a completion by itself: engines compare them with texts without any."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # it has no such file
        ends = None
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = [token.content for number, token in added.items() if token.special and number not in known]
    return [text for text in dict.fromkeys(stops) if any(token in text for token in special)]


def _refuse_misfit(group: Group, context: int, prompts: Artifact) -> None:
    length, name = len(group.prompt_token_ids), group.row["prompt_id"]
    if length == 0:
        raise DataError(f"{prompts.path}: prompt {name!r} has no tokens. Check data.template")
    if length >= context:
        raise DataError(
            f"{prompts.path}: prompt {name!r} has {length} tokens, but the context holds {context} with its completion. "
            "Shorten or remove the prompt, or raise engine.max_model_len"
        )


def _finish(work: Work, reward: RewardConfig, notes: Event) -> Artifact:
    names = sorted((path.name for path in work.path.glob("part-*.parquet")), key=in_order)
    for name in names:
        work.has_table(name, Rollouts)
        work.has_table(remarks_name(name), Remarks)
        work.has_table(turns_name(name), Turns)
    rows = read_scalars([work.path / name for name in names])
    rows_of_all, rows = rows, rows.filter(ends_episode())
    if set(rows["status"]) == {"engine_error"}:
        raise StageFailed(
            f"{work.path}: the engine failed on all {len(rows)} completions. One of the errors: {rows['error'][0]}. "
            "Mend that and run the same command again"
        )
    errors = rows.filter(pl.col("status") == "reward_error")["error"]
    refuse_many_failures(len(errors), len(rows), errors, reward, work)
    turns = [path for name in names if (path := work.path / turns_name(name)).is_file()]
    return work.finish({**summarize(rows_of_all), **turn_figures(turns)}, notes={**notes, **places_of(reward.components)})
