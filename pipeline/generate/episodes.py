"""Episodes: completions of several turns, with an environment that speaks between them.

Token in, token out: the prompt of a turn is the tokens of the last one and those that the environment adds. Nothing that was
drawn is ever tokenized again. While an environment thinks, the engine goes on with other episodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.environment import EnvironmentConfig
from pipeline.environments.host import Host, Key
from pipeline.environments.protocol import Observation
from pipeline.generate.between import Between
from pipeline.generate.engine import AnyEngine, CompletionRequest, Episode, EpisodeTurn, Reply
from pipeline.generate.history import Rendered
from pipeline.generate.seeds import turn_seed
from pipeline.generate.shards import Decoder, text_of
from schemas.rollouts import CONTINUED
from schemas.turns import VOID

CUTS = {"length": "turn_limit", "tokens": "episode_limit", "context": "context_full"}
"""Status of a turn that was cut, by the finish_reason of its episode."""


def action_of(turn: Reply, tokenizer: Decoder, *, keep_stop: bool, special: bool) -> str:
    """The text of a turn, as an environment is given it.

    Args:
        keep_stop: with the stop text that ended it.
        special: with special tokens, but for the one that ends the turn.
    """
    if not special:
        return text_of(turn, tokenizer, keep_stop=keep_stop)
    ids = turn.token_ids[:-1] if turn.token_ids and turn.token_ids[-1] in tokenizer.all_special_ids else turn.token_ids
    return tokenizer.decode(ids, skip_special_tokens=False)


@dataclass
class _Open:
    """An episode on its way."""

    ask: CompletionRequest
    """Of its first turn."""
    room: int
    """Tokens that its completion may have."""
    end_of_room: str
    """What cuts it there: tokens or context."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    turns: list[EpisodeTurn] = field(default_factory=list)
    drawn: int = 0
    """Turns of the policy."""
    earlier: list[Reply] = field(default_factory=list)
    """Rows that are whole, where each turn is one."""
    chat: list[dict[str, Any]] = field(default_factory=list)
    """What was said behind the prompt, as messages of the chat template; kept where each turn is a row."""

    def next_ask(self) -> CompletionRequest:
        sampling, left = self.ask.sampling, self.room - len(self.tokens)
        if left < sampling.max_tokens:
            sampling = sampling.model_copy(update={"max_tokens": left})
        prompt = self.ask.prompt_token_ids + self.tokens
        return replace(self.ask, prompt_token_ids=prompt, sampling=sampling, seed=turn_seed(self.ask.seed, self.drawn))

    def add_drawn(self, reply: Reply) -> str | None:
        """Take a turn of the policy. Returns what cut it, if something did."""
        cut = None
        if reply.finish_reason == "length":
            cut = "length" if len(reply.token_ids) >= self.ask.sampling.max_tokens else self.end_of_room
        status = "engine_error" if reply.error is not None else CUTS[cut] if cut else "ok"
        self.turns.append(EpisodeTurn(len(self.tokens), len(reply.token_ids), "policy", status=status))
        self.tokens += reply.token_ids
        self.logprobs += reply.logprobs
        self.mask += [True] * len(reply.token_ids)
        self.drawn += 1
        return cut

    def add_said(self, said: Observation, pieces: Sequence[list[int]]) -> None:
        """Take what the environment says to the policy."""
        for message, tokens in zip(said.messages, pieces, strict=True):
            who = "tool" if message.role == "tool" else "environment"
            status = "tool_error" if message.error else "ok"
            self.turns.append(EpisodeTurn(len(self.tokens), len(tokens), who, message.name, status=status))
            self.tokens += tokens
            self.logprobs += [0.0] * len(tokens)
            self.mask += [False] * len(tokens)

    def cut(self) -> None:
        """Begin a new row, if the policy has drawn something."""
        if self.drawn:
            self.earlier.append(self.ended(CONTINUED))
        self.tokens, self.logprobs, self.mask, self.turns = [], [], [], []

    def add_history(self, tokens: Sequence[int]) -> None:
        """Take what the chat template writes anew."""
        if tokens:
            self.turns.append(EpisodeTurn(len(self.tokens), len(tokens), "environment"))
            self.tokens += tokens
            self.logprobs += [0.0] * len(tokens)
            self.mask += [False] * len(tokens)

    def reward(self, value: float) -> None:
        """What the environment gave for the last turn of the policy."""
        self.turns[-1] = replace(self.turns[-1], reward=value)

    def void(self) -> None:
        """The last turn of the policy was neither a call nor an answer."""
        self.turns[-1] = replace(self.turns[-1], status=VOID)

    def ended(self, finish_reason: str | None, *, engine: str | None = None, environment: str | None = None) -> Reply:
        """The whole of it as a completion.

        Args:
            engine: why the engine could not go on.
            environment: why the environment could not.
        """
        episode = Episode(tuple(self.mask), tuple(self.turns), environment)
        whole = None if finish_reason == CONTINUED else tuple(self.earlier)
        return Reply(self.ask.key, self.tokens, self.logprobs, finish_reason, None, engine, episode=episode, earlier=whole or ())


class Episodes:
    """An engine whose completions are episodes.

    Args:
        engine: draws turns.
        host: plays the environment.
        config: limits.
        context: tokens that a prompt and its completion may have.
        prompt_of: what the environment is told of a completion's prompt.
        action_of: the text of a turn, as the environment is given it.
        between: writes what the environment says as tokens.
        history: of each job, what writes the whole chat anew before each turn, which is then a row of its own. None: tokens stay
            as they were drawn.
    """

    def __init__(
        self,
        engine: AnyEngine,
        host: Host,
        config: EnvironmentConfig,
        context: int,
        *,
        prompt_of: Callable[[Key], Mapping[str, Any]],
        action_of: Callable[[Reply], str],
        between: Between,
        history: Mapping[int, Rendered] | None = None,
    ) -> None:
        self._engine, self._host, self._config, self._context = engine, host, config, context
        self._prompt_of, self._action_of, self._between, self._history = prompt_of, action_of, between, history
        self._open: dict[Key, _Open] = {}
        self._ready: deque[CompletionRequest] = deque()
        self._ended: list[Reply] = []
        self.name = engine.name
        host.on_answer = engine.wake

    @property
    def tokens(self) -> list[int]:
        """What each of several engines has drawn."""
        return self._engine.tokens

    def wake(self) -> None:
        self._engine.wake()

    def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[Sequence[Reply]]:
        """Play episodes, and yield them as they end, in any order."""
        for replies in self._engine.run(self._turns(asks), in_flight):
            for reply in replies:
                self._take(reply)
            yield self._take_ended()
        yield self._take_ended()

    def _turns(self, asks: Iterator[Sequence[CompletionRequest]]) -> Iterator[Sequence[CompletionRequest]]:
        """Turns to draw, as soon as they can be; nothing where environments think about all that there is."""
        is_dry = False
        while True:
            self._hear()
            if self._ready:
                yield [self._ready.popleft()]
            elif not is_dry and len(self._open) < self._config.in_flight:
                several = next(asks, None)
                is_dry = several is None
                for ask in several or ():
                    self._begin(ask)
            elif is_dry and not self._open:
                return
            else:
                yield []

    def _begin(self, ask: CompletionRequest) -> None:
        room, end = self._room(ask)
        self._open[ask.key] = _Open(ask, room, end)
        self._host.start(ask.key, self._prompt_of(ask.key), ask.seed)

    def _room(self, ask: CompletionRequest) -> tuple[int, str]:
        """Tokens that there may be behind a prompt, and what cuts an episode there."""
        room = self._context - len(ask.prompt_token_ids)
        if self._config.max_tokens is not None and self._config.max_tokens < room:
            return self._config.max_tokens, "tokens"
        return room, "context"

    def _hear(self) -> None:
        self._host.refuse_dead()
        while not self._host.answers.empty():
            key, said = self._host.answers.get()
            self._answered(self._open[key], said)

    def _answered(self, episode: _Open, said: Observation) -> None:
        """Go on after what the environment said."""
        if said.error is not None:
            self._end(episode, None, environment=said.error)
            return
        if said.reward is not None:
            episode.reward(said.reward)
        if said.void:
            episode.void()
        if said.done:
            self._end(episode, "stop")
        elif episode.drawn >= self._config.max_turns:
            self._end(episode, "turns")
        elif self._history is not None:
            self._go_on_anew(episode, said, self._history[episode.ask.key[0]])
        else:
            pieces = self._between.tokens(said.messages, episode.tokens[-1] if episode.tokens else None)
            if len(episode.tokens) + sum(map(len, pieces)) >= episode.room:
                self._end(episode, episode.end_of_room)
                return
            episode.add_said(said, pieces)
            self._ready.append(episode.next_ask())

    def _go_on_anew(self, episode: _Open, said: Observation, history: Rendered) -> None:
        """Go on in a row of its own, behind the chat as the template writes it now."""
        episode.chat += history.messages(said)
        before, pieces = history.tokens(self._prompt_of(episode.ask.key), episode.ask.prompt_token_ids, episode.chat, said)
        if len(before) + sum(map(len, pieces)) >= episode.room:
            self._end(episode, episode.end_of_room)
            return
        episode.cut()
        episode.add_history(before)
        episode.add_said(said, pieces)
        self._ready.append(episode.next_ask())

    def _take(self, reply: Reply) -> None:
        """Take a turn of the policy, and have the environment answer it."""
        episode = self._open[reply.key]
        cut = episode.add_drawn(reply)
        if reply.error is not None:
            self._end(episode, reply.finish_reason, engine=reply.error)
        elif cut is not None:
            self._end(episode, cut)
        else:
            if self._history is not None:
                episode.chat.append(self._history[reply.key[0]].message(reply))
            self._host.step(reply.key, self._action_of(reply))

    def _end(
        self, episode: _Open, finish_reason: str | None, *, engine: str | None = None, environment: str | None = None
    ) -> None:
        del self._open[episode.ask.key]
        self._host.end(episode.ask.key)
        self._ended.append(episode.ended(finish_reason, engine=engine, environment=environment))

    def _take_ended(self) -> list[Reply]:
        ended, self._ended = self._ended, []
        return ended
