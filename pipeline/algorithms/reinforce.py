"""REINFORCE and group baselines without a trust region or with PPO's.

    loss_t = - A log pi(y_t | x, y_<t)

The central paper shows that group-relative REINFORCE is natively off-policy (nothing in its derivation asks where the
completions come from), and that without clipping or a penalty it collapses on data that do not follow the policy.
"""

from pipeline.algorithms.cells.advantages import BatchNormalized, LeaveOneOut
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.trust_region import OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient

REINFORCE = PolicyGradient(
    name="reinforce",
    summary="Group-relative REINFORCE: every token pulls, in proportion to its completion's advantage.",
    formula="- A log pi(y_t)",
    paper="Williams 1992; group-relative as in arXiv:2509.24203",
)
RLOO = PolicyGradient(
    name="rloo",
    summary="REINFORCE with the mean of the other completions as baseline, and PPO's clip.",
    formula="- min(r_t A, clip(r_t) A),  A = r - mean of the others",
    paper="arXiv:2402.14740",
    advantage=LeaveOneOut(),
    importance=Ratio(),
    trust_region=OneSide(),
    surrogate=True,
)
REINFORCE_PP = PolicyGradient(
    name="reinforce++",
    summary="PPO's clip with rewards whitened over the whole snapshot instead of within groups.",
    formula="- min(r_t A, clip(r_t) A),  A = (r - mean) / std over all tokens",
    paper="arXiv:2501.03262",
    advantage=BatchNormalized(),
    importance=Ratio(),
    trust_region=OneSide(),
    surrogate=True,
)

ALGORITHMS = (REINFORCE, RLOO, REINFORCE_PP)
