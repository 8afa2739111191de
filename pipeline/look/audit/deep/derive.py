"""All that a deep audit recomputes, artifact by artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.look.audit.deep.draws import check_draws
from pipeline.look.audit.deep.episodes import check_episodes
from pipeline.look.audit.deep.logprobs import Distribution, check_logprobs
from pipeline.look.audit.deep.replay import check_replay
from pipeline.look.audit.deep.rerun import CannotRerun, rerun
from pipeline.look.audit.deep.rewards import check_rewards
from pipeline.look.audit.deep.weights import check_finite
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from schemas import Rollouts, Scores

OnWork = Callable[[str, int, int], None]
"""Called with what is recomputed, how many artifacts are done, and how many there are."""
COMPUTED = ("shape", "mix", "evaluate", "revise")
"""Stages that are done again as they are."""


def derive(
    audited: Iterable[Held], world: World, *, samples: int, steps: int, on_work: OnWork = lambda what, done, total: None
) -> tuple[Distribution, ...]:
    """Recompute what can be recomputed of artifacts that are whole, and report what comes out otherwise.

    Args:
        samples: completions whose logprobs are recomputed, per artifact; 0 for all.
        steps: training steps that are taken again.
    """
    audited = list(audited)
    whole = [held for held in audited if world.intact(held)]
    found: list[Distribution] = []
    with tempfile.TemporaryDirectory(prefix="rollbook-audit-") as scratch:
        derivation = _Derivation(world, Path(scratch), samples, steps, found)
        for number, held in enumerate(whole):
            on_work(f"recomputing {held.kind}", number, len(whole))
            derivation.of(held)
    return tuple(found)


class _Derivation:
    def __init__(self, world: World, scratch: Path, samples: int, steps: int, found: list[Distribution]) -> None:
        self.world, self.scratch, self.samples, self.steps, self.found = world, scratch, samples, steps, found

    def of(self, held: Held) -> None:
        stage = held.manifest.content.stage.partition("/")[0]
        if stage in COMPUTED:
            self._try(held, f"{held.kind} artifacts made again", lambda: self._count_rerun(held))
        if held.kind == "rollouts":
            self._try(held, "rollouts whose prompts and seeds were drawn again", lambda: (int(check_draws(held, self.world)), 1))
            if "environment" in held.recipe:
                self._try(held, "episodes played again", lambda: check_episodes(held, self.world, self.samples))
            self._try(held, "rewards graded again", lambda: check_rewards(held, self.world) or (0, _rows(held)))
        if held.kind in ("rollouts", "scores"):
            self._try(held, "completions whose logprobs were recomputed", lambda: self._logprobs(held))
        if held.kind in ("checkpoint", "reward_model"):
            self._try(held, "weights that were looked at for NaN and infinity", lambda: check_finite(held, self.world))
        if stage == "train" and held.kind == "checkpoint":
            self._try(held, "training steps taken again", lambda: self._replay(held))

    def _try(self, held: Held, what: str, check: Callable[[], tuple[int, int]]) -> None:
        try:
            done, total = check()
            self.world.ledger.count("derivation", what, done, total)
        except CannotRerun as reason:
            self.world.ledger.count("derivation", what, 0, 1)
            said: dict[str, Any] = {"expected": what, "found": f"not done: {reason}"}
            held.spot(self.world.ledger).note(
                "derivation", "not recomputed", **said, remedy="Nothing else says that it is wrong."
            )
        except Exception as error:
            self.world.ledger.count("derivation", what, 0, 1)
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            said = {"expected": what, "found": found, "remedy": "Look at the artifact by hand; the audit could not finish this."}
            held.spot(self.world.ledger).unknown("derivation", "check failed", **said)

    def _count_rerun(self, held: Held) -> tuple[int, int]:
        return int(rerun(held, self.world, self.scratch / "store")), 1

    def _logprobs(self, held: Held) -> tuple[int, int]:
        distribution = check_logprobs(held, self.world, self.scratch, self.samples)
        if distribution is not None:
            self.found.append(distribution)
        return (distribution.completions if distribution else 0), _rows(held)

    def _replay(self, held: Held) -> tuple[int, int]:
        taken, elsewhere = check_replay(held, self.world, self.scratch / held.folder.name, self.steps)
        if elsewhere:
            expected = "the machine and software that trained it"
            remedy = "Figures were compared within a tolerance. Audit where it was trained to compare them exactly."
            held.spot(self.world.ledger).note("derivation", "replay", expected=expected, found=elsewhere, remedy=remedy)
        return taken, int(held.summary.get("steps") or taken)


def _rows(held: Held) -> int:
    """Completions of rollouts or scores; other tables may lie beside them."""
    return sum(file.rows or 0 for table in (Rollouts, Scores) for file in held.tables(table.title()))
