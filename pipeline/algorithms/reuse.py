"""Methods that train on the same rollouts more than once, beside newer ones: their losses, on what a snapshot holds.

How rollouts of several iterations are mixed is a setting of the run (`replay`), as are their age limits.
"""

from pipeline.algorithms.cells.advantages import GroupNormalized, SelfImitation
from pipeline.algorithms.cells.aggregation import SequenceSum
from pipeline.algorithms.cells.covariance import CovarianceClip
from pipeline.algorithms.cells.density import DensityWeight
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.regularizers import ConvexKL, EntropyBonus
from pipeline.algorithms.cells.trust_region import CenteredBand
from pipeline.algorithms.policy_gradient import PolicyGradient

REMIX = PolicyGradient(
    name="remix",
    summary=(
        "PPO clipped around prox/mu, so that old rollouts are stopped for what this training moved them, with a KL to the base "
        "model that gives way to a KL to the policy before. Its schedule is the setting `step`, its restart (a new base model) a "
        "phase with another `reference`: the recipe remix has both."
    ),
    formula="- min(r_t A, clip(r_t, c-low, c+high) A) + coefficient (share KL(ref) + (1-share) KL(prox)),  c = sg[prox/mu]",
    paper="arXiv:2507.06892",
    advantage=GroupNormalized(),
    importance=Ratio(),
    trust_region=CenteredBand(),
    regularizers=(ConvexKL(), EntropyBonus()),
)
SPEAR = PolicyGradient(
    name="spear",
    summary=(
        "GRPO and imitation of its own successes in one step: completions better than their group and than the median of the "
        "groups' means count more. Each rollouts artifact is its own buffer; the schedule of the imitation is the setting "
        "`step`. Rewards for tool calls are `shape.tool_bonus`."
    ),
    formula="- 1[not left out for its covariance] min(r_t A', clip(r_t) A'),  A' = A + gamma (r - P50) 1[A > 0, r > P50]",
    paper="arXiv:2509.22601",
    advantage=SelfImitation(),
    importance=Ratio(),
    trust_region=CovarianceClip(),
    aggregation=SequenceSum(divisor=1024.0),
)
DENSITY_REINFORCE = PolicyGradient(
    name="density-reinforce",
    summary=(
        "REINFORCE in which a completion counts less the less likely it was than its group under the data's policy. What is "
        "left of CDSA where actions are discrete: its gradient of a density over continuous actions has no counterpart, and "
        "guidance while decoding changes the rollouts, not the training."
    ),
    formula="- min(1, e^(eta (l - median of the group))) A log pi(y_t),  l = mean_t log mu(y_t)",
    paper="after CDSA, arXiv:2406.07541",
    weighting=DensityWeight(),
)

ALGORITHMS = (REMIX, SPEAR, DENSITY_REINFORCE)
