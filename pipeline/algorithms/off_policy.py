"""Methods made for data that the policy being trained did not draw."""

from pipeline.algorithms.cells.advantages import GroupNormalized, Signed
from pipeline.algorithms.cells.aggregation import SequenceMean
from pipeline.algorithms.cells.balance import BalancedBand
from pipeline.algorithms.cells.importance import EffectiveSampleCap, Ratio, SequenceProbability
from pipeline.algorithms.cells.mismatch import InterpolatedProximal, ProximalRatio
from pipeline.algorithms.cells.regularizers import MissingSampleKL
from pipeline.algorithms.cells.shaping import Mixed
from pipeline.algorithms.cells.trust_region import OneSide, SecondMoment
from pipeline.algorithms.policy_gradient import PolicyGradient

TOPR = PolicyGradient(
    name="topr",
    summary="REINFORCE on +1/-1 rewards; negatives count less as the policy moves away from them, positives always 1.",
    formula="- sg[1 if R>0 else min(1, W)] R log pi(y_t),  W = pi(y)/mu(y) of the whole completion",
    paper="arXiv:2503.14286",
    advantage=Signed(),
    importance=Ratio(level="sequence", positive_low=1.0, positive_high=1.0, negative_low=0.0, negative_high=1.0),
    aggregation=SequenceMean(),
)
BAPO = PolicyGradient(
    name="bapo",
    summary="PPO's objective with bounds that widen on each step until positives make up their share of it.",
    formula="- min(r_t A, clip(r_t, c_low, c_high) A),  bounds searched per step",
    paper="arXiv:2510.18927",
    advantage=GroupNormalized(),
    importance=Ratio(),
    trust_region=BalancedBand(),
)
M2PO = PolicyGradient(
    name="m2po",
    summary="Importance-weighted REINFORCE that masks the farthest tokens until the second moment of log r fits a budget.",
    formula="- r_t A 1[kept] log pi(y_t),  mean of (log r)^2 over kept harmful tokens <= budget",
    paper="arXiv:2510.01161",
    advantage=GroupNormalized(),
    importance=Ratio(),
    trust_region=SecondMoment(),
)
P3O = PolicyGradient(
    name="p3o",
    summary="REINFORCE with ratios capped by the effective sample size, and a pull to the data as strong as they are stale.",
    formula="- sg[min(r_t, ESS)] A log pi(y_t) + (1 - ESS) KL3(pi, mu)",
    paper="arXiv:2605.12380",
    advantage=GroupNormalized(),
    importance=EffectiveSampleCap(),
    regularizers=(MissingSampleKL(),),
)
DECOUPLED_PPO = PolicyGradient(
    name="decoupled-ppo",
    summary="PPO clipped around the policy at the start of this training, corrected for the older one that drew the data.",
    formula="- prox/mu min(u_t A, clip(u_t) A),  u_t = pi/prox",
    paper="arXiv:2110.00641; AReaL, arXiv:2505.24298",
    advantage=GroupNormalized(),
    importance=Ratio(),
    trust_region=OneSide(),
    mismatch=ProximalRatio(),
    surrogate=True,
)
A3PO = DECOUPLED_PPO.replace(
    name="a-3po",
    summary="Decoupled PPO whose proximal logprobs are interpolated between mu and pi by the data's age.",
    formula="- prox/mu min(u_t A, clip(u_t) A),  log prox = log mu + alpha log(pi/mu), alpha = (age-1)/age",
    paper="arXiv:2512.06547",
    mismatch=InterpolatedProximal(),
)
OPG = PolicyGradient(
    name="opg",
    summary="Raise or lower the completion's mean-token probability; negatives fade by themselves. Needs no log mu.",
    formula="1 - p if solved else p,  p = exp(mean_t log pi(y_t))",
    paper="arXiv:2601.14716",
    filters=(Mixed(),),
    advantage=Signed(),
    importance=SequenceProbability(),
    aggregation=SequenceMean(),
)

ALGORITHMS = (TOPR, BAPO, M2PO, P3O, DECOUPLED_PPO, A3PO, OPG)
