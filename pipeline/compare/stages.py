"""The stages of one trial: trained with its own settings and seed, judged with the run's."""

from __future__ import annotations

from pipeline.compare.plan import Plan, Variant
from pipeline.run.local import LocalStages, OnStage
from pipeline.run.processes import Processes
from pipeline.run.record import Answers
from pipeline.store import Artifact


def _quiet(stage: str, event: object) -> None:
    pass


class TrialStages(LocalStages):
    """As `LocalStages`, for one variant.

    Args:
        variant: None for the policy before training, which is only judged.
        processes: shared by all trials of a comparison.
    """

    def __init__(
        self,
        plan: Plan,
        variant: Variant | None,
        on_stage: OnStage = _quiet,
        *,
        only_look: bool = False,
        processes: Processes | None = None,
    ) -> None:
        judging = plan.judging(variant)
        training = plan.training(variant) if variant else judging
        super().__init__(training, on_stage, only_look=only_look, processes=processes)
        self._base = plan.snapshot.base
        self._judge = LocalStages(judging, on_stage, only_look=only_look, processes=self.processes)

    def base(self) -> Artifact:
        return self._base

    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers:
        return self._judge.generate(iteration, policy, train, heldout)

    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact:
        return self._judge.evaluate(iteration, policy, answers)
