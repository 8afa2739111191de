"""What an environment is, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

MOST_CHARACTERS = 1 << 22
"""Longest observation: what is more than any context holds."""
ROLES = ("user", "tool")
"""Who speaks between two turns of the policy, as chat templates name them."""


class Environment(Protocol):
    """One episode. It is made anew for each, with its args, and knows nothing of other episodes.

    An environment says `deterministic = True` of its class where equal prompts, seeds and actions are answered equally: deep
    audits then play its episodes again. One that says `reads_special_tokens = True` is given actions with special tokens in them.
    One with a class method `prepare(model, **args)` has it called once, in the process that episodes are forked from, with the
    policy's directory.
    """

    def start(self, prompt: Mapping[str, Any], seed: int) -> str | None:
        """What the policy is told before its first turn, beside its prompt; None or "" for nothing.

        Args:
            prompt: prompt_id, question, answer and whatever other columns the prompt's row has.
            seed: of the episode; every random choice follows from it.
        """

    def step(self, action: str) -> tuple[Any, float | None, bool, Mapping[str, Any]]:
        """Take what the policy said, and answer.

        Args:
            action: the text of its turn, without special tokens and stop texts.

        Returns:
            The observation (a text, or a list of messages: {"role": "user" or "tool", "content", "name", "error"}); the reward
            of this turn, None if it has none; whether the episode is over, in which case nobody reads the observation; and what
            else there is to say: {"void": True} says that the turn is neither a call nor an answer.
        """


@dataclass(frozen=True, slots=True)
class Utterance:
    """One message of an environment."""

    content: str
    role: str = "user"
    name: str | None = None
    """Of the tool that speaks."""
    error: bool = False
    """Whether it says that a call failed."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment answers to one turn, or before the first."""

    messages: tuple[Utterance, ...] = ()
    reward: float | None = None
    done: bool = False
    error: str | None = None
    """Why the environment cannot go on."""
    void: bool = False
    """Whether the turn that it answers was neither a call nor an answer."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Observation:
        """The observation of `to_json`.

        >>> said = Observation((Utterance("7"),), 0.5)
        >>> Observation.from_json(said.to_json()) == said
        True
        """
        messages = tuple(Utterance(**message) for message in said["messages"])
        return cls(messages, said["reward"], said["done"], said["error"], said.get("void", False))


def as_start(value: Any) -> Observation:
    """What `start` returned.

    Raises:
        ValueError: it is none of what it may be.
    """
    return Observation(_messages(value))


def as_step(value: Any) -> Observation:
    """What `step` returned.

    >>> as_step(("7", 1, True, {})).reward
    1.0

    Raises:
        ValueError: it is none of what it may be.
    """
    if not isinstance(value, tuple | list) or len(value) != 4:
        raise ValueError(f"step returned {_shown(value)}, expected (observation, reward, done, info)")
    observation, reward, done, info = value
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward)):
        raise ValueError(f"step returned the reward {_shown(reward)}, expected a finite number or None")
    if not isinstance(done, bool):
        raise ValueError(f"step returned done = {_shown(done)}, expected True or False")
    if not isinstance(info, Mapping):
        raise ValueError(f"step returned info = {_shown(info)}, expected a dict")
    return Observation(_messages(observation), None if reward is None else float(reward), done, void=info.get("void") is True)


def _messages(value: Any) -> tuple[Utterance, ...]:
    if value is None or value == "":
        return ()
    items = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(items, Sequence):
        raise ValueError(f"the observation is {_shown(value)}, expected a text or a list of messages")
    messages = tuple(_message(item) for item in items)
    if (length := sum(len(message.content) for message in messages)) > MOST_CHARACTERS:
        raise ValueError(f"the observation has {length:,} characters, more than the {MOST_CHARACTERS:,} that one may have")
    return messages


def _message(item: Any) -> Utterance:
    if isinstance(item, str):
        return Utterance(item)
    if not isinstance(item, Mapping) or not isinstance(item.get("content"), str):
        raise ValueError(f'a message is {_shown(item)}, expected a text or {{"role", "content"}}')
    role, name = item.get("role", "user"), item.get("name")
    if role not in ROLES or not isinstance(name, str | None):
        raise ValueError(
            f"a message has role {_shown(role)} and name {_shown(name)}, expected one of {', '.join(ROLES)} and a text"
        )
    return Utterance(item["content"], role, name, bool(item.get("error", False)))


def _shown(value: Any) -> str:
    return repr(value)[:80]
