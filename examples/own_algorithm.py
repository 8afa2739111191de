"""An algorithm of one's own from cells that are there: GRPO's clip on raw rewards, held near the data and kept curious.

rollbook run configs/demo.yaml --plugin examples/own_algorithm.py --set train.algorithm=raw-clip
"""

from pipeline.algorithms.cells.advantages import RawReward
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.regularizers import EntropyBonus, ForwardKL
from pipeline.algorithms.cells.trust_region import OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient

RAW_CLIP = PolicyGradient(
    name="raw-clip",
    summary="PPO's clip on rewards less a constant, with a pull to the data and an entropy bonus.",
    formula="- min(r_t A, clip(r_t) A) - 0.05 log pi(y_t) - 0.01 H,  A = r - 0.5",
    paper="",
    advantage=RawReward(baseline=0.5),
    importance=Ratio(),
    trust_region=OneSide(),
    regularizers=(ForwardKL(coefficient=0.05), EntropyBonus(coefficient=0.01)),
    surrogate=True,
)

ALGORITHMS = (RAW_CLIP,)
