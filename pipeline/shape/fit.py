"""Whether stored rollouts have what an algorithm needs, as far as their manifest says: looked at before any work."""

from __future__ import annotations

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.cell import BEHAVIOR
from pipeline.algorithms.cells.shaping import OverlongPenalty
from pipeline.common.errors import UserError
from pipeline.shape.behavior import SCORE
from pipeline.store import Artifact


def check_rollouts(rollouts: Artifact, algorithm: Algorithm, called: str) -> None:
    """Raise if an algorithm cannot train on these rollouts.

    Args:
        called: what the refusal calls them.

    Raises:
        UserError: says what they lack, and the remedy.
    """
    check_limit(rollouts, algorithm, called)
    if BEHAVIOR not in algorithm.needs:
        return
    if absent := rollouts.summary.get("without_logprobs"):
        raise UserError(
            f"{called}: {algorithm.name} needs behavior_logprobs, and {absent} of these completions have none. {SCORE}, or use a "
            "method without a ratio (such as reinforce)"
        )
    sampling = rollouts.recipe.get("sampling", {})
    cut = sampling.get("top_p", 1) < 1 or sampling.get("top_k", 0) > 0 or sampling.get("min_p", 0) > 0
    if cut or sampling.get("temperature") == 0:
        raise UserError(
            f"{called}: {algorithm.name} needs the ratio pi/mu, and these rollouts were drawn greedily or with top_p, top_k or "
            "min_p. Leave them out, or use a method without a ratio (such as reinforce)"
        )


def check_limit(rollouts: Artifact, algorithm: Algorithm, called: str) -> None:
    """Raise if an algorithm lowers the reward of long completions and nothing says how long they may be.

    Raises:
        UserError: names the setting.
    """
    penalty = algorithm.reward
    if isinstance(penalty, OverlongPenalty) and not (penalty.limit or max_tokens_of(rollouts)):
        raise UserError(
            f"{called}: {algorithm.name} lowers the reward of completions near the length limit, and these rollouts do not say "
            "what their max_tokens was. Set reward.limit in train.algorithm_args, to the longest completion allowed, in tokens"
        )


def max_tokens_of(rollouts: Artifact) -> int:
    """The longest completion that the rollouts were allowed, in tokens; 0 if they do not say. Of episodes, not of their turns."""
    section = "environment" if "environment" in rollouts.recipe else "sampling"
    return int(rollouts.recipe.get(section, {}).get("max_tokens") or 0)
