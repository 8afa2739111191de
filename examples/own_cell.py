"""A cell of one's own: LUFFY's policy shaping (arXiv:2504.14945), for demonstrations by an expert whose logprobs are unknown.

rollbook check configs/demo.yaml --plugin examples/own_cell.py --set train.algorithm=luffy --set train.algorithm_args.gamma=0.2
"""

from dataclasses import dataclass

from pipeline.algorithms.cells.advantages import GroupMean
from pipeline.algorithms.cells.aggregation import SequenceSum
from pipeline.algorithms.cells.cell import Cell, Positive
from pipeline.algorithms.policy_gradient import PolicyGradient


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapedProbability(Cell):
    """w_t = f'(p) p = gamma p / (p + gamma)^2 with f(p) = p / (p + gamma), p = pi(y_t): rare tokens learn the most."""

    gamma: Positive = 0.1

    def weight(self, drift):
        p = drift.tokens.logprobs.detach().exp()
        return self.gamma * p / (p + self.gamma) ** 2


LUFFY = PolicyGradient(
    name="luffy",
    summary="REINFORCE whose tokens weigh as their shaped probability does; the expert's own probability is taken as 1.",
    formula="- sg[gamma p / (p + gamma)^2] A log pi(y_t),  p = pi(y_t)",
    paper="arXiv:2504.14945",
    advantage=GroupMean(),
    importance=ShapedProbability(),
    aggregation=SequenceSum(divisor=1024.0),
)
ALGORITHMS = (LUFFY,)
