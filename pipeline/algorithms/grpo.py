"""GRPO: PPO's clipped surrogate with advantages normalised over the group (Shao et al. 2024, arXiv:2402.03300).

    loss_t = - min(r_t A, clip(r_t, 1 - low, 1 + high) A),   A = (r - mean) / std over the group,   r_t = pi/mu

The paper averages over each completion's tokens first, then over completions. Its KL term to a reference has coefficient 0
here, as in TRL and in the central paper's runs.
"""

from pipeline.algorithms.cells.advantages import GroupNormalized
from pipeline.algorithms.cells.aggregation import SequenceMean
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.trust_region import OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient

GRPO = PolicyGradient(
    name="grpo",
    summary="PPO's clipped surrogate with group-normalised advantages, averaged within each completion first.",
    formula="- min(r_t A, clip(r_t, 1-low, 1+high) A)",
    paper="arXiv:2402.03300",
    advantage=GroupNormalized(),
    importance=Ratio(),
    trust_region=OneSide(),
    aggregation=SequenceMean(),
    surrogate=True,
)

ALGORITHMS = (GRPO,)
