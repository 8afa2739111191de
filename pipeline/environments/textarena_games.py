"""`textarena_games`: games of TextArena that one plays alone, such as Wordle-v0."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from pipeline.common.errors import UserError


class TextArenaGames:
    """Environment of one episode. What the game says first follows the prompt, and its reward is that of the last turn.

    Every prompt has a game of its own: games draw from Python's global generator, which the prompt's name starts, so that all
    completions of a prompt play the same one.
    """

    library: ClassVar[str] = "textarena"

    def __init__(self, game: str, args: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            game: its id, such as Wordle-v0.
            args: of `textarena.make`.
        """
        self._game, self._args = game, dict(args or {})

    @classmethod
    def prepare(cls, model: str | None, game: str, args: Mapping[str, Any] | None = None) -> None:
        """Load the library and the game, once for all episodes."""
        try:
            import textarena
        except ImportError as error:
            raise UserError(
                f"environment.name: textarena_games takes the library textarena ({error}): pip install 'rollbook[textarena]'"
            ) from None
        try:
            textarena.make(env_id=game, **dict(args or {})).reset(num_players=1)
        except Exception as error:
            raise UserError(f"environment.args.game: {game}: {type(error).__name__}: {error}") from None

    def start(self, prompt: Mapping[str, Any], seed: int) -> str:
        import textarena

        random.seed(str(prompt["prompt_id"]))
        self._env = textarena.make(env_id=self._game, **self._args)
        self._env.reset(num_players=1)
        return self._said()

    def step(self, action: str) -> tuple[str | None, float | None, bool, dict[str, Any]]:
        done, _ = self._env.step(action)
        if not done:
            return self._said(), None, False, {}
        rewards, _ = self._env.close()
        return None, float((rewards or {}).get(0, 0.0)), True, {}

    def _said(self) -> str:
        """What the game has said since it was last asked. Its wrappers would tell all of it each time."""
        inner = self._env
        while hasattr(inner, "env"):
            inner = inner.env
        _, told = inner.get_observation()
        return "\n".join(str(message) for speaker, message, *_ in told if speaker != 0)
