"""Episodes played again: what a built-in environment answers to the stored turns, from the stored seeds.

Environments and tools of the user's own are code, which an audit does not run. One that does not say that it is deterministic may
answer otherwise each time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.environment import EnvironmentConfig
from pipeline.environments.host import Host
from pipeline.environments.protocol import Observation
from pipeline.environments.registry import BUILTINS, VERSIONS, resolve, rows_of_episode
from pipeline.generate.between import Between, between
from pipeline.generate.engine import EpisodeTurn, Reply
from pipeline.generate.episodes import action_of
from pipeline.generate.history import Rendered
from pipeline.generate.seeds import completion_seed
from pipeline.generate.turns import episodes_of
from pipeline.look.audit.deep.rerun import CannotRerun, parent_path
from pipeline.look.audit.deep.rewards import prompts_of
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from pipeline.sources.tools import BUILTINS as TOOLS
from schemas import Rollouts, Turns
from schemas.turns import VOID

REMEDY = "These tokens, or this reward, are not what the environment gives. Have the rollouts made anew by their run."
ANSWER_SECONDS = 300.0
READ = ("group_id", "sample_index", "prompt_id", "prompt_token_ids", "completion_token_ids", "finish_reason", "status")


def check_episodes(held: Held, world: World, samples: int) -> tuple[int, int]:
    """Report episodes whose environment answers otherwise now. Returns how many were played again, of how many.

    Args:
        samples: episodes to play, whole groups; 0 for all.

    Raises:
        CannotRerun: the environment is the user's own, not deterministic, of another version, or parents are not here whole.
    """
    stated = held.recipe.get("environment")
    if not isinstance(stated, Mapping):
        return 0, 0
    config = _config(stated)
    tokenizer = _tokenizer(held, world)
    rows = world.columns(held, Rollouts, {name: pl.col(name) for name in READ})
    turns = world.columns(held, Turns, {name: pl.col(name) for name in Turns.columns()})
    if rows is None or turns is None:
        raise CannotRerun("its rollouts or turns are not whole")
    parent = world.shelf.parent(held, "prompts")
    if parent is None:
        raise CannotRerun("its prompts are not here whole")
    writes, several = between(tokenizer, parent.recipe), rows_of_episode(held.recipe)
    history = Rendered(tokenizer, parent.recipe) if several > 1 else None
    prompts, spoken = prompts_of(held, world), episodes_of(turns)
    chosen = _chosen(rows, samples)
    files = held.tables(Rollouts.title())
    with Host(config) as host:
        game = _Game(host, writes, tokenizer, held.recipe)
        for row in chosen.iter_rows(named=True) if history is None else ():
            prompt = prompts.get(row["prompt_id"])
            if prompt is None:
                raise CannotRerun("its prompts are not here whole")
            if why := game.difference(row, spoken.get((row["group_id"], row["sample_index"]), []), prompt):
                held.spot(world.ledger, files[row["file"]].path).error(
                    "derivation", "episode", expected=why[0], found=why[1], remedy=REMEDY, row=row["row"], column=why[2]
                )
        for episode in _episodes_of(chosen, several) if history is not None else ():
            prompt = prompts.get(episode[0]["prompt_id"])
            if prompt is None:
                raise CannotRerun("its prompts are not here whole")
            assert history is not None
            turns_of = [spoken.get((row["group_id"], row["sample_index"]), []) for row in episode]
            if (why := game.difference_anew(episode, turns_of, prompt, history, several)) is not None:
                held.spot(world.ledger, files[episode[0]["file"]].path).error(
                    "derivation", "episode", expected=why[0], found=why[1], remedy=REMEDY, row=episode[0]["row"], column=why[2]
                )
    return len(chosen), len(rows)


def _episodes_of(rows: pl.DataFrame, several: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of each episode, in their order."""
    ordered = rows.sort("group_id", "sample_index").iter_rows(named=True)
    for _, episode in itertools.groupby(ordered, key=lambda row: (row["group_id"], row["sample_index"] // several)):
        yield list(episode)


def _config(stated: Mapping[str, Any]) -> EnvironmentConfig:
    name, args = str(stated.get("name")), stated.get("args") or {}
    if name not in BUILTINS:
        raise CannotRerun(f"{name} is the user's own environment, and an audit runs no code that comes with the data")
    tools = stated.get("tools") or {}
    if own := [tool for tool in tools if tool not in TOOLS]:
        raise CannotRerun(f"{own[0]} is the user's own tool, and an audit runs no code that comes with the data")
    if args.get("parser"):
        raise CannotRerun(f"calls were read by vLLM's parser {args['parser']}, which may read them otherwise in another version")
    if stated.get("version", 1) != VERSIONS.get(name, 1):
        raise CannotRerun(f"another version of {name} answered then")
    config = EnvironmentConfig(name=name, args=dict(args), tools=tuple(tools))
    if not resolve(name, config.given).deterministic:
        raise CannotRerun(f"{name} may answer otherwise each time")
    return config


def _tokenizer(held: Held, world: World) -> Any:
    from pipeline.sources.tokenizer import load_tokenizer

    return load_tokenizer(Path(parent_path(held, world, "policy")), trust_remote_code=False)


def _chosen(rows: pl.DataFrame, samples: int) -> pl.DataFrame:
    """Whole groups, in the order of a hash of their names."""
    sound = rows.filter(pl.col("status").is_in(["ok", "truncated", "reward_error"]))
    names = sorted(sound["group_id"].unique(), key=lambda name: hashlib.sha256(name.encode()).digest())
    sizes = dict(sound.group_by("group_id").len().iter_rows())
    taken = [name for name, before in zip(names, itertools.accumulate((sizes[n] for n in names), initial=0), strict=False)
             if not samples or before < samples]  # fmt: skip
    return sound.filter(pl.col("group_id").is_in(pl.Series(taken, dtype=pl.String).implode()))


class _Game:
    """One episode, played by what is stored."""

    def __init__(self, host: Host, between: Between, tokenizer: Any, recipe: Mapping[str, Any]) -> None:
        self._host, self._between, self._tokenizer, self._recipe = host, between, tokenizer, recipe

    def difference(
        self, row: Mapping[str, Any], turns: Sequence[EpisodeTurn], prompt: Mapping[str, Any]
    ) -> tuple[str, str, str] | None:
        """What the environment says, what is stored, and in which column; None if they are the same."""
        key, tokens = (0, row["row"], row["sample_index"]), row["completion_token_ids"]
        self._host.start(key, prompt, self._seed(row))
        try:
            said, rounds = self._heard(), list(_rounds(turns))
            for number, (drawn, others) in enumerate(rounds):
                if drawn is not None:
                    if drawn.status not in ("ok", VOID):
                        return None
                    self._host.step(key, self._action(tokens[drawn.start : drawn.start + drawn.length]))
                    said = self._heard()
                    if said.reward != drawn.reward:
                        return f"reward {said.reward}", f"{drawn.reward} for the turn at {drawn.start}", "reward"
                    if said.void != (drawn.status == VOID) and said.error is None:
                        return f"a turn that is {'' if said.void else 'not '}void", f"status {drawn.status}", "status"
                if said.error is not None:
                    return f"an environment that fails: {said.error}", "an episode without that", "status"
                goes_on = number + 1 < len(rounds)
                if said.done if goes_on else row["finish_reason"] == "stop" and not said.done:
                    return f"an environment that says it is {'over' if goes_on else 'not over'}", "otherwise", "finish_reason"
                stored = [tokens[turn.start : turn.start + turn.length] for turn in others]
                last = tokens[drawn.start + drawn.length - 1] if drawn is not None and drawn.length else None
                wanted = self._between.tokens(said.messages, last) if goes_on else []
                called = [(message.name, message.error) for message in said.messages] if goes_on else []
                if called != [(turn.name, turn.status == "tool_error") for turn in others]:
                    names = ", ".join(str(turn.name) for turn in others)
                    return f"messages of {', '.join(str(name) for name, _ in called)}", f"turns of {names}", "turns"
                if stored != wanted:
                    texts = [self._tokenizer.decode([one for piece in pieces for one in piece]) for pieces in (wanted, stored)]
                    return f"{texts[0]!r} from the environment", f"{texts[1]!r}", "completion_token_ids"
            return None
        finally:
            self._host.end(key)

    def difference_anew(
        self,
        rows: Sequence[Mapping[str, Any]],
        turns: Sequence[Sequence[EpisodeTurn]],
        prompt: Mapping[str, Any],
        history: Rendered,
        several: int,
    ) -> tuple[str, str, str] | None:
        """As `difference`, of an episode of which each turn is a row.

        Args:
            rows: of the episode.
            turns: of each row.
            several: rows that an episode may have.
        """
        key = (0, rows[0]["row"], rows[0]["sample_index"])
        self._host.start(key, prompt, self._seed({**rows[0], "sample_index": rows[0]["sample_index"] // several}))
        chat: list[dict[str, Any]] = []
        try:
            said = self._heard()
            for number, (row, spoken) in enumerate(zip(rows, turns, strict=True)):
                if said.error is not None or said.done:
                    return "an environment that goes on", f"that it is over, or {said.error}", "finish_reason"
                drawn, tokens = spoken[-1], row["completion_token_ids"]
                chat += history.messages(said)
                before, pieces = history.tokens(prompt, row["prompt_token_ids"], chat, said)
                wanted = [*before, *itertools.chain.from_iterable(pieces)]
                if tokens[: drawn.start] != wanted:
                    texts = [self._tokenizer.decode(ids) for ids in (wanted, tokens[: drawn.start])]
                    return f"{texts[0]!r} before the turn", f"{texts[1]!r}", "completion_token_ids"
                called = [(message.name, message.error) for message in said.messages]
                stored = [(turn.name, turn.status == "tool_error") for turn in spoken[:-1]][-len(called) or len(spoken) :]
                if called != stored:
                    return f"messages of {called}", f"turns of {stored}", "turns"
                if drawn.status not in ("ok", VOID):
                    return None
                action = tokens[drawn.start :]
                chat.append(history.message(Reply(key, action, [], "stop", None, None)))
                self._host.step(key, self._action(action))
                said = self._heard()
                if said.reward != drawn.reward:
                    return f"reward {said.reward}", f"{drawn.reward} for turn {number}", "reward"
            ended = rows[-1]["finish_reason"] == "stop"
            if said.error is None and ended != said.done:
                return f"an environment that says it is {'over' if said.done else 'not over'}", "otherwise", "finish_reason"
            return None
        finally:
            self._host.end(key)

    def _heard(self) -> Observation:
        return self._host.answers.get(timeout=ANSWER_SECONDS)[1]

    def _action(self, tokens: list[int]) -> str:
        sampling = self._recipe["sampling"]
        whole = self._tokenizer.decode(tokens, skip_special_tokens=True)
        stop = next((text for text in sampling.get("stop") or () if text in whole), None)
        turn = Reply((0, 0, 0), tokens, [], "stop", whole if stop else None, None, stop)
        keep_stop = bool(sampling.get("keep_stop_text"))
        return action_of(turn, self._tokenizer, keep_stop=keep_stop, special=self._host.reads_special_tokens)

    def _seed(self, row: Mapping[str, Any]) -> int:
        selection = self._recipe["selection"]
        group = row["group_id"].rpartition("@")[0]
        return completion_seed(selection["seed"], self._recipe["purpose"], selection["iteration"], group, row["sample_index"])


def _rounds(turns: Sequence[EpisodeTurn]) -> Iterator[tuple[EpisodeTurn | None, list[EpisodeTurn]]]:
    """Each turn of the policy with what was said to it; first what was said before, with no turn."""
    drawn: EpisodeTurn | None = None
    others: list[EpisodeTurn] = []
    for turn in turns:
        if turn.who == "policy":
            yield drawn, others
            drawn, others = turn, []
        else:
            others.append(turn)
    yield drawn, others
