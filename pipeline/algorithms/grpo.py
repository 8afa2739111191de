"""GRPO and its descendants.

GRPO (Shao et al. 2024, arXiv:2402.03300) is PPO's clipped surrogate with advantages normalized over the group:

    loss_t = - min(r_t A, clip(r_t, 1 - low, 1 + high) A),   A = (r - mean) / std over the group,   r_t = pi/mu

The paper averages over each completion's tokens first, then over completions. Its KL term to a reference is a setting with
coefficient 0 here, as in TRL and in the central paper's runs.
"""

from pipeline.algorithms.cells.advantages import GroupMean, GroupNormalized
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum, TokenMean
from pipeline.algorithms.cells.importance import ClippedGeometricRatio, GammaGate, Ratio, SigmoidGate
from pipeline.algorithms.cells.regularizers import ReferenceKL
from pipeline.algorithms.cells.shaping import Mixed, OverlongPenalty
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient

GRPO = PolicyGradient(
    name="grpo",
    summary="PPO's clipped surrogate with group-normalized advantages, averaged within each completion first.",
    formula="- min(r_t A, clip(r_t, 1-low, 1+high) A),  A = (r - mean) / std",
    paper="arXiv:2402.03300",
    advantage=GroupNormalized(),
    importance=Ratio(),
    trust_region=OneSide(),
    regularizers=(ReferenceKL(),),
    aggregation=SequenceMean(),
    surrogate=True,
)
DR_GRPO = GRPO.replace(
    name="dr-grpo",
    summary="GRPO without its two biases: no division by the standard deviation, sums over a constant length.",
    formula="- min(r_t A, clip(r_t) A) / constant,  A = r - mean",
    paper="arXiv:2503.20783",
    advantage=GroupMean(),
    aggregation=SequenceSum(divisor=1024.0),
)
DAPO = GRPO.replace(
    name="dapo",
    summary="GRPO with a higher upper clip, token mean, only groups with right and wrong answers, and a soft penalty for length.",
    formula="- min(r_t A, clip(r_t, 0.8, 1.28) A)",
    paper="arXiv:2503.14476",
    reward=OverlongPenalty(),
    filters=(Mixed(),),
    trust_region=OneSide(low=0.2, high=0.28),
    regularizers=(),
    aggregation=TokenMean(),
)
GSPO = GRPO.replace(
    name="gspo",
    summary="GRPO with the completion's length-normalized ratio in place of the tokens'.",
    formula="- s A log pi(y_t) where s is within its clip,  s = (prod r_t)^(1/length)",
    paper="arXiv:2507.18071",
    importance=Ratio(level="geometric"),
    trust_region=OneSide(low=3e-4, high=4e-4, level="geometric"),
    regularizers=(),
    surrogate=False,
)
GMPO = GRPO.replace(
    name="gmpo",
    summary="GRPO with the geometric mean of clipped token ratios, so that no single token dominates.",
    formula="- sg[(prod clip(r_t))^(1/length) 1[r_t not clipped]] A log pi(y_t),  |log clip(r_t)| <= limit",
    paper="arXiv:2507.20673",
    importance=ClippedGeometricRatio(),
    trust_region=NoTrustRegion(),
    regularizers=(),
    surrogate=False,
)
CISPO = PolicyGradient(
    name="cispo",
    summary="REINFORCE with truncated token ratios as constant weights: no token is ever masked.",
    formula="- sg[min(r_t, 1+0.28)] A log pi(y_t)",
    paper="arXiv:2506.13585",
    advantage=GroupNormalized(),
    importance=Ratio(positive_high=1.28, negative_high=1.28),
)
SAPO = CISPO.replace(
    name="sapo",
    summary="A smooth gate in place of clipping: tokens fade as they move away, sooner for negatives.",
    formula="- sg[4 s (1-s) r_t] A log pi(y_t),  s = sigmoid(tau (r_t - 1))",
    paper="arXiv:2511.20347",
    importance=SigmoidGate(),
    trust_region=NoTrustRegion(),
    aggregation=SequenceMean(),
)
VESPO = CISPO.replace(
    name="vespo",
    summary="A smooth gate on the whole completion's ratio, derived from a variational view of staleness.",
    formula="- sg[e^lambda W^k e^(-lambda W)] A log pi(y_t),  W = prod r_t",
    paper="arXiv:2602.10693",
    importance=GammaGate(),
)

ALGORITHMS = (GRPO, DR_GRPO, DAPO, GSPO, GMPO, CISPO, SAPO, VESPO)
