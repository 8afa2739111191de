"""Regression methods: the completion's log ratio is fitted to its advantage over the soft value of its group.

A*-PO's paper estimates V* from samples of the reference. Here it is that of the snapshot's own completions, by whatever policy
drew them: the two are the same on the base model's rollouts only.
"""

from pipeline.algorithms.cells.advantages import SoftValue
from pipeline.algorithms.regression import LogRatioTarget, ReferenceTarget, Regression

OAPL = Regression(
    name="oapl",
    summary="Off-policy squared regression with the data's own policy as anchor: no ratio weights, no clipping.",
    formula="(beta log pi(y)/mu(y) - A)^2,  A = r - beta1 log mean exp(r/beta1)",
    paper="arXiv:2602.19362",
    advantage=SoftValue(beta=1.0),
    target=LogRatioTarget(beta=1.0),
)
A_STAR_PO = Regression(
    name="a*-po",
    summary=(
        "Squared regression with a frozen reference as anchor. V* is estimated from the rollouts, which the paper draws from the "
        "reference: on rollouts of another policy it is that policy's."
    ),
    formula="(beta2 log pi(y)/ref(y) - A)^2,  A = r - beta1 log mean exp(r/beta1)",
    paper="arXiv:2505.20686",
    advantage=SoftValue(beta=0.5),
    target=ReferenceTarget(beta=1e-3),
)

ALGORITHMS = (OAPL, A_STAR_PO)
