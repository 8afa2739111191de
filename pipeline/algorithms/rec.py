"""REC, REP and RED: the family of "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv:2509.24203).

    loss_t = - w_t A 1[t in trust region] log pi(y_t | x, y_<t) + regularizer,   A = r - mean(r over the group)

REC regularizes by clipping: the mask and w_t are constants of the gradient; NoIS sets w_t = 1, IS sets w_t = r_t = pi/mu.
REP regularizes by a penalty (OPMD, AsymRE). RED shapes the data (drops or weighs completions).
"""

from pipeline.algorithms.cells.advantages import GroupMean
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum
from pipeline.algorithms.cells.importance import NoImportance, Ratio
from pipeline.algorithms.cells.regularizers import SpreadOfLogRatio, SquaredLogRatio
from pipeline.algorithms.cells.shaping import BalanceNegatives, ExponentialAdvantage
from pipeline.algorithms.cells.trust_region import OneSide, Ring, TwoSide
from pipeline.algorithms.policy_gradient import PolicyGradient

PAPER = "arXiv:2509.24203"

REC_ONESIDE_NOIS = PolicyGradient(
    name="rec-oneside-nois",
    summary="REINFORCE that stops tokens which have moved far enough, without importance weights.",
    formula="- A 1[A>=0 and r_t<=1+high, or A<=0 and r_t>=1-low] log pi(y_t)",
    paper=PAPER,
    trust_region=OneSide(),
)
REC_ONESIDE_IS = REC_ONESIDE_NOIS.replace(
    name="rec-oneside-is",
    summary="REINFORCE that stops tokens which have moved far enough, with importance weights: PPO's gradient.",
    formula="- r_t A 1[A>=0 and r_t<=1+high, or A<=0 and r_t>=1-low] log pi(y_t)",
    importance=Ratio(),
)
REC_TWOSIDE_NOIS = REC_ONESIDE_NOIS.replace(
    name="rec-twoside-nois",
    summary="REINFORCE on tokens whose ratio is within a band, whatever their advantage.",
    formula="- A 1[1-low <= r_t <= 1+high] log pi(y_t)",
    trust_region=TwoSide(),
)
REC_TWOSIDE_IS = REC_TWOSIDE_NOIS.replace(
    name="rec-twoside-is",
    summary="The two-sided band with importance weights.",
    formula="- r_t A 1[1-low <= r_t <= 1+high] log pi(y_t)",
    importance=Ratio(),
)
REC_RING_NOIS = REC_ONESIDE_NOIS.replace(
    name="rec-ring-nois",
    summary="The two-sided band, and the tokens far on the wrong side of it.",
    formula="- A 1[in band, or A>=0 and r_t<=1-far_low, or A<=0 and r_t>=1+far_high] log pi(y_t)",
    trust_region=Ring(),
)
REC_RING_IS = REC_RING_NOIS.replace(
    name="rec-ring-is",
    summary="The ring with importance weights.",
    formula="- r_t A 1[in band, or A>=0 and r_t<=1-far_low, or A<=0 and r_t>=1+far_high] log pi(y_t)",
    importance=Ratio(),
)
REC_GSPO_NOIS = REC_ONESIDE_NOIS.replace(
    name="rec-gspo-nois",
    summary="One-sided clipping of whole completions by their length-normalized ratio.",
    formula="- A 1[s within its clip] log pi(y_t),  s = (prod r_t)^(1/length)",
    importance=NoImportance(),
    trust_region=OneSide(low=3e-4, high=4e-4, level="geometric"),
    aggregation=SequenceMean(),
)
REC_GSPO_IS = REC_GSPO_NOIS.replace(
    name="rec-gspo-is",
    summary="The same with the length-normalized ratio as weight.",
    formula="- s A 1[s within its clip] log pi(y_t)",
    importance=Ratio(level="geometric"),
)
OPMD = PolicyGradient(
    name="opmd",
    summary="REINFORCE with a penalty on squared log ratios (Kimi's online policy mirror descent).",
    formula="- A log pi(y_t) + c (log r_t)^2,  c = tau/2",
    paper="arXiv:2501.12599; as REP in arXiv:2509.24203",
    regularizers=(SquaredLogRatio(),),
)
OPMD_PAIRWISE = PolicyGradient(
    name="opmd-pairwise",
    summary="REINFORCE with a penalty on how much the log ratios of a group's completions differ.",
    formula="- A log pi(y) + (tau/2) Var over the group of log pi(y)/mu(y)",
    paper="the OPMD note behind arXiv:2509.24203",
    regularizers=(SpreadOfLogRatio(),),
    aggregation=SequenceSum(divisor=1.0),
)
ASYMRE = PolicyGradient(
    name="asymre",
    summary="REINFORCE with a baseline below the group's mean, which anchors the policy to the data.",
    formula="- A log pi(y_t),  A = r - (mean - 0.1)",
    paper="arXiv:2506.20520; as REP in arXiv:2509.24203",
    advantage=GroupMean(shift=-0.1),
)
RED_DROP = PolicyGradient(
    name="red-drop",
    summary="REINFORCE on groups from which surplus negatives were dropped at random.",
    formula="- A log pi(y_t),  A = r - mean over the kept completions",
    paper=PAPER,
    filters=(BalanceNegatives(),),
)
RED_WEIGHT = PolicyGradient(
    name="red-weight",
    summary="REINFORCE in which a completion counts exp(A / temperature).",
    formula="- exp(A/T) A log pi(y_t)",
    paper=PAPER,
    weighting=ExponentialAdvantage(),
)

ALGORITHMS = (
    REC_ONESIDE_NOIS,
    REC_ONESIDE_IS,
    REC_TWOSIDE_NOIS,
    REC_TWOSIDE_IS,
    REC_RING_NOIS,
    REC_RING_IS,
    REC_GSPO_NOIS,
    REC_GSPO_IS,
    OPMD,
    OPMD_PAIRWISE,
    ASYMRE,
    RED_DROP,
    RED_WEIGHT,
)
