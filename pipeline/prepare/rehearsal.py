"""An algorithm of the user's own on a few made-up completions, so that a slip in it is found before any rollout is made."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.cell import BEHAVIOR, PROXIMAL, REFERENCE
from pipeline.algorithms.cells.density import DENSITY
from pipeline.common.errors import UserError
from pipeline.config.shape import ShapeConfig
from pipeline.shape.choices import finished, shape_rows, shaped_table

REWARDS = (1.0, 0.0, 0.0, 1.0)
LENGTHS = (3, 1, 2, 4)
STORED = {"behavior": BEHAVIOR, "reference": REFERENCE, "proximal": PROXIMAL}
"""Fields of `Tokens` that are there if the algorithm needs the column."""


def rehearse(algorithm: Algorithm) -> None:
    """Shape four completions, take their loss and its gradient, with no stored logprobs but those that its cells say they need.

    Raises:
        UserError: one of them fails or is not finite; names the last line of the user's code, if it was there.
    """
    try:
        _check_shaping(algorithm)
        _check_loss(algorithm)
    except UserError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_the_users(frame.filename)]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{algorithm.name}: fails on four made-up completions: {place}{what}") from None


def _is_the_users(file: str) -> bool:
    libraries = (str(Path(__file__).parents[1]), *sysconfig.get_paths().values())
    return not file.startswith(libraries) and not file.startswith("<")


def _check_shaping(algorithm: Algorithm) -> None:
    count = len(REWARDS)
    rows = pl.DataFrame(
        {
            "group_id": ["g"] * count,
            "sample_index": list(range(count)),
            "status": ["ok"] * count,
            "reward": list(REWARDS),
            "policy_version": [0] * count,
            "tokens": list(LENGTHS),
            "drawn": list(LENGTHS),
            "max_tokens": [8] * count,
            **({DENSITY: [-1.0, -0.5, -0.2, -0.9]} if BEHAVIOR in algorithm.shaping_needs else {}),
        },
        schema_overrides={"sample_index": pl.Int32},
    )
    shaped = shaped_table(finished(shape_rows(rows, ShapeConfig(), algorithm, seed=0), algorithm, 0.0, 1.0, 0.5), algorithm)
    sound = pl.col("advantage").is_finite() & pl.col("weight").is_finite() & (pl.col("weight") >= 0)
    for row in shaped.filter(~sound.fill_null(False)).iter_rows(named=True):
        raise UserError(
            f"{algorithm.name}: gives a made-up completion with reward {REWARDS[row['sample_index']]:g} the advantage "
            f"{row['advantage']} and the weight {row['weight']}; expected finite numbers, and no negative weight"
        )


def _check_loss(algorithm: Algorithm) -> None:
    import torch

    from pipeline.algorithms.tokens import Tokens, Totals

    count, total = len(LENGTHS), sum(LENGTHS)
    logprobs = torch.linspace(-2.0, -0.1, total).requires_grad_()
    entropy = torch.linspace(0.1, 1.5, total).requires_grad_()
    scored = logprobs.detach() - 0.1 * torch.arange(total) / total
    stored = {name: scored if column in algorithm.needs else None for name, column in STORED.items()}
    mask = torch.ones(total, dtype=torch.bool)
    mask[1] = False
    sequence = torch.repeat_interleave(torch.arange(count), torch.tensor(LENGTHS))
    tokens = Tokens(
        logprobs=logprobs,
        entropy=entropy,
        mask=mask,
        sequence=sequence,
        advantage=torch.tensor([0.5, -0.5, -0.5, 0.5]),
        weight=torch.ones(count),
        lengths=torch.zeros(count).index_add(0, sequence, mask.float()),
        group=torch.zeros(count, dtype=torch.int64),
        number=torch.arange(count),
        age=torch.ones(count),
        pairs=torch.tensor([[0, 1], [3, 2]]),
        preference=torch.ones(2),
        **stored,
    )
    loss = algorithm.loss(tokens, Totals(tokens=float(mask.sum()), sequences=float(count)))
    inputs = (logprobs, entropy)
    gradients = torch.autograd.grad(loss.value, inputs, allow_unused=True, materialize_grads=True)
    if not torch.isfinite(loss.value) or not all(torch.isfinite(gradient).all() for gradient in gradients):
        raise UserError(f"{algorithm.name}: on four made-up completions its loss or its gradient is not finite")
    if loss.stopped.shape != mask.shape:
        raise UserError(f"{algorithm.name}: says of {list(loss.stopped.shape)} tokens whether they stopped, not of {[total]}")
