"""REINFORCE with the group's mean as baseline.

    loss_t = - A log pi(y_t | x, y_<t),   A = r - mean(r over the group)

The central paper shows that this is natively off-policy (nothing in its derivation asks where the completions come from),
and that without clipping or a penalty it collapses on data that do not follow the policy.
"""

from pipeline.algorithms.policy_gradient import PolicyGradient

REINFORCE = PolicyGradient(
    name="reinforce",
    summary="Group-relative REINFORCE: every token pulls, in proportion to its completion's advantage.",
    formula="- A log pi(y_t)",
    paper="Williams 1992; group-relative as in arXiv:2509.24203",
)

ALGORITHMS = (REINFORCE,)
