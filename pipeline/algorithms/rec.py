"""REC: group-relative REINFORCE with clipping as its regularizer (Yao et al. 2025, arXiv:2509.24203).

    loss_t = - w_t A 1[t in trust region] log pi(y_t | x, y_<t),   A = r - mean(r over the group)

The mask and w_t are constants of the gradient. NoIS sets w_t = 1; IS sets w_t = r_t = pi/mu.
"""

from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.trust_region import OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient

REC_ONESIDE_NOIS = PolicyGradient(
    name="rec-oneside-nois",
    summary="REINFORCE that stops tokens which have moved far enough, without importance weights.",
    formula="- A 1[A>=0 and r_t<=1+high, or A<=0 and r_t>=1-low] log pi(y_t)",
    paper="arXiv:2509.24203",
    trust_region=OneSide(),
)
REC_ONESIDE_IS = REC_ONESIDE_NOIS.replace(
    name="rec-oneside-is",
    summary="REINFORCE that stops tokens which have moved far enough, with importance weights: PPO's gradient.",
    formula="- r_t A 1[A>=0 and r_t<=1+high, or A<=0 and r_t>=1-low] log pi(y_t)",
    importance=Ratio(),
)

ALGORITHMS = (REC_ONESIDE_NOIS, REC_ONESIDE_IS)
