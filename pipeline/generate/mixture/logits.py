"""The mixture itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def mixed_logits(
    ours: Float[Tensor, "tokens vocabulary"], theirs: Float[Tensor, "tokens vocabulary"], share: float
) -> Float[Tensor, "tokens vocabulary"]:
    """Logits of pi'(v) ∝ pi(v)^(1 - share) other(v)^share:  (1 - share) log_softmax(ours) + share log_softmax(theirs), in fp32.

    Divided by a temperature and normalized they are log pi' at that temperature. A share of 0 gives pi, 1 the other; one below 0
    leads away from the other. With pi = (.6, .3, .1), a uniform other and a share of 1/2, pi' = (.4727, .3343, .1930).
    """
    return (1 - share) * ours.float().log_softmax(-1) + share * theirs.float().log_softmax(-1)
