"""Whether the names of a model's tensors look like all that it needs: layers beside one another, and what stands around them.

No library is asked, so nothing is known for certain: what looks incomplete is to be looked at closely, and what a whole kind of
layers lacks may pass.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

TOGETHER = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
)
"""Tensors of a layer of which there are all or none, in most models; others share some of them, or call them something else."""
USUAL = "self_attn.o_proj.weight"
AROUND = ("embed_tokens.weight", "norm.weight")
"""What stands beside layers that have the usual output projection."""
_LAYER = re.compile(r"(.*?\b(?:layers|h|blocks)\.)(\d+)\.(.+)")


def looks_incomplete(names: Collection[str], layers: int | None) -> bool:
    """Whether tensors seem to be missing.

    Args:
        names: of all tensors.
        layers: how many the config says that the model has.

    >>> names = [f"layers.{n}.{name}" for n in range(2) for name in ("a", "b")]
    >>> looks_incomplete(names, 2), looks_incomplete(names, 3), looks_incomplete(names[1:], 2)
    (False, True, True)
    """
    stacks: defaultdict[str, dict[int, set[str]]] = defaultdict(dict)
    for name in names:
        if match := _LAYER.fullmatch(name):
            stacks[match[1]].setdefault(int(match[2]), set()).add(match[3])
    if not stacks:
        return False
    main = max(stacks, key=lambda stack: len(stacks[stack]))
    usual = USUAL in set().union(*stacks[main].values())
    around = [main.removesuffix("layers.") + name for name in AROUND] if usual else []
    return not set(around) <= set(names) or any(
        _lack(parts, layers if stack == main else None) for stack, parts in stacks.items()
    )


def _lack(parts: Mapping[int, set[str]], layers: int | None) -> bool:
    """Whether layers are left out, or one has a part of what another has, or of what belongs together.

    Those beyond the number in the config predict further tokens, and have more than others.
    """
    count = max(parts) + 1 if layers is None else layers
    kinds = {frozenset(parts.get(number, ())) for number in range(count)}
    return any(one < other for one in kinds for other in kinds) or any(
        not kind.isdisjoint(group) and not kind.issuperset(group) for kind in kinds for group in TOGETHER
    )
