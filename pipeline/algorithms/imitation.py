"""Imitation: likelihood of chosen completions, and rejection sampling with a policy gradient."""

from pipeline.algorithms.cells.advantages import Constant, GroupMean, Signed
from pipeline.algorithms.cells.aggregation import SequenceMean, TokenMean
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.shaping import BestOfN, Mixed, OnlySolved
from pipeline.algorithms.cells.trust_region import OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient

SFT = PolicyGradient(
    name="sft",
    summary="Likelihood of every completion: behavior cloning of the data.",
    formula="- log pi(y_t)",
    paper="",
    advantage=Constant(),
)
RAFT = SFT.replace(
    name="raft",
    summary="Likelihood of solved completions: rejection sampling.",
    formula="- 1[solved] log pi(y_t)",
    paper="arXiv:2304.06767",
    filters=(OnlySolved(),),
    aggregation=SequenceMean(),
)
BEST_OF_N = SFT.replace(
    name="best-of-n",
    summary="Likelihood of each group's best completion.",
    formula="- 1[best of its group] log pi(y_t)",
    paper="arXiv:2304.06767",
    filters=(BestOfN(),),
    aggregation=SequenceMean(),
)
RAFT_PP = RAFT.replace(
    name="raft++",
    summary="RAFT with importance weights and PPO's clip.",
    formula="- 1[solved] min(r_t, clip(r_t))",
    paper="arXiv:2504.11343",
    importance=Ratio(),
    trust_region=OneSide(),
    aggregation=TokenMean(),
    surrogate=True,
)
REINFORCE_REJ = PolicyGradient(
    name="reinforce-rej",
    summary="REINFORCE with PPO's clip on groups that are neither all right nor all wrong.",
    formula="- min(r_t A, clip(r_t) A) on mixed groups",
    paper="arXiv:2504.11343",
    filters=(Mixed(),),
    advantage=GroupMean(),
    importance=Ratio(),
    trust_region=OneSide(),
    surrogate=True,
)
W_REINFORCE = PolicyGradient(
    name="w-reinforce",
    summary="REINFORCE on +1/-1 rewards with positives weighed down (positive = 0: learn from mistakes alone).",
    formula="- (0.1 if solved else -1) log pi(y_t)",
    paper="arXiv:2506.01347",
    advantage=Signed(positive=0.1),
)

ALGORITHMS = (SFT, RAFT, RAFT_PP, BEST_OF_N, REINFORCE_REJ, W_REINFORCE)
