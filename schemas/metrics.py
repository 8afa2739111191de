"""Metrics: what an optimizer step did. Timing: how long it took (kept apart, since it differs between equal runs)."""

from typing import Any

import dataframely as dy
import polars as pl

from schemas.table import Table, column, rule

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def _share(description: str) -> Any:
    return column(dy.Float64, description, unit="share of tokens", nullable=True)


class Metrics(Table):
    """One optimizer step, in which every figure is over the whole step. Null: not defined for this algorithm or data.

    Written by train beside the checkpoint. Counts and means of what is stored (groups to `age_max`) are over all completions of
    the step; what takes the policy's logprobs (`entropy` and all that follows) is over the computed ones.
    Figures of ratios are of the policy at the start of the step, before its update.
    `kl_behavior` is the estimator called k3 in Schulman, "Approximating KL divergence" (2020), which is never negative and
    unbiased for tokens drawn from mu; `ess` is Kish's effective sample size (1965) divided by the number of completions.

    Example:
        {
            "step": 2,
            "epoch": 1,
            "groups": 16,
            "completions": 128,
            "computed": 80,
            "left_out": 48,
            "tokens": 1350,
            "loss": -0.021857,
            "grad_norm": 0.161645,
            "learning_rate": 0.0001,
            "reward_mean": 0.25,
            "advantage_mean": 0.0,
            "completion_tokens_mean": 10.546875,
            "age_mean": 0.0,
            "age_max": 0,
            "entropy": 0.286543,
            "kl_behavior": 0.002239,
            "ratio_q01": 0.713777,
            "ratio_q10": 0.963188,
            "ratio_q50": 1.0,
            "ratio_q90": 1.000104,
            "ratio_q99": 1.170373,
            "ratio_max": 1.348425,
            "clip_fraction_positive": 0.0,
            "clip_fraction_negative": 0.054645,
            "ess": 0.960296,
            "logprob_difference_mean": None,
            "logprob_difference_max": None,
        }
    """

    step = column(dy.Int32, "Optimizer step, from 0.", primary_key=True, min=0)
    epoch = column(dy.Int32, "Pass over the snapshot, from 0.", min=0)
    groups = column(dy.Int32, "Groups in the step.")
    completions = column(dy.Int32, "Completions in the step.")
    computed = column(dy.Int32, "Of these, the ones that were computed.", min=0)
    left_out = column(dy.Int32, "Of these, the dead ones, whose loss has no gradient whatever the policy.", min=0)
    tokens = column(dy.Int64, "Completion tokens that carry loss.")
    loss = column(dy.Float64, "The loss that was minimized.", allow_nan=True, allow_inf=True)
    grad_norm = column(dy.Float64, "Norm of the gradient before clipping.", allow_nan=True, allow_inf=True)
    learning_rate = column(dy.Float64, "Learning rate of the step.")
    reward_mean = column(dy.Float64, "Mean reward of the step's completions.", nullable=True)
    advantage_mean = column(dy.Float64, "Mean advantage over completions.")
    completion_tokens_mean = column(dy.Float64, "Mean length of the completions.", unit="tokens")
    age_mean = column(
        dy.Float64,
        "Mean age of the completions: iterations between their policy and the one training started from. 0 is fresh.",
        unit="iterations",
    )
    age_max = column(dy.Int32, "Greatest age of the step's completions.", unit="iterations")
    entropy = column(dy.Float64, "Mean entropy of the policy's next-token distribution.", unit="nats", nullable=True)
    kl_behavior = column(
        dy.Float64, "KL(mu || pi) per token by the estimator r - 1 - log r, r = pi/mu.", unit="nats", nullable=True
    )
    ratio_q01 = column(dy.Float64, "1 % quantile of the token ratio pi/mu, before any clipping.", nullable=True)
    ratio_q10 = column(dy.Float64, "10 % quantile of the token ratio.", nullable=True)
    ratio_q50 = column(dy.Float64, "Median token ratio.", nullable=True)
    ratio_q90 = column(dy.Float64, "90 % quantile of the token ratio.", nullable=True)
    ratio_q99 = column(dy.Float64, "99 % quantile of the token ratio.", nullable=True)
    ratio_max = column(dy.Float64, "Largest token ratio.", nullable=True)
    clip_fraction_positive = _share("Tokens with A > 0 that the trust region stopped, of all tokens with A > 0.")
    clip_fraction_negative = _share("Tokens with A < 0 that the trust region stopped, of all tokens with A < 0.")
    ess = column(
        dy.Float64,
        "Effective sample size of the sequence ratios, (sum W)^2 / (n sum W^2).",
        unit="share of completions",
        nullable=True,
    )
    logprob_difference_mean = column(
        dy.Float64,
        "Mean |trainer - stored| logprob per token before the first step, of completions by the policy it started from.",
        unit="nats",
        nullable=True,
    )
    logprob_difference_max = column(
        dy.Float64, "Largest |trainer - stored| logprob before the first step.", unit="nats", nullable=True
    )

    @rule
    def computed_and_left_out_are_all_completions(cls) -> pl.Expr:
        return pl.col("computed") + pl.col("left_out") == pl.col("completions")


class Timing(Table):
    """How long one optimizer step took.

    Written by train beside the metrics, and no part of the checkpoint's id.

    Example:
        {
            "step": 2,
            "seconds": 0.596261,
            "tokens_per_second": 2264.11,
            "data_seconds": 0.005567,
        }
    """

    step = column(dy.Int32, "Optimizer step, from 0.", primary_key=True, min=0)
    seconds = column(dy.Float64, "Wall time of the step.", unit="s")
    tokens_per_second = column(dy.Float64, "Completion tokens computed per second.", unit="tokens/s")
    data_seconds = column(dy.Float64, "Time spent waiting for data.", unit="s")
