"""Weights that are numbers: no NaN, no infinity."""

from __future__ import annotations

from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World

REMEDY = "Training broke down, or the file was made otherwise: go back to the checkpoint before it."


def check_finite(held: Held, world: World) -> tuple[int, int]:
    """Report tensors with values that are not finite. Returns how many tensors were looked at, of how many."""
    from safetensors import safe_open

    done = 0
    for file in held.files:
        if not file.path.endswith(".safetensors"):
            continue
        with safe_open(held.folder.local(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                tensor = tensors.get_tensor(name)
                broken = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
                if broken:
                    found = f"{broken} of {tensor.numel()} values are NaN or infinite"
                    spot = held.spot(world.ledger, file.path)
                    spot.error("derivation", "finite", expected="finite weights", found=found, remedy=REMEDY, column=name)
                done += 1
    return done, done
