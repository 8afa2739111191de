"""Comparison: what many algorithms made of one snapshot. Its timing is kept apart, since it differs between equal results."""

from typing import Any

import dataframely as dy
import polars as pl

from schemas.table import Table, column, one_of, rule

STATUSES = ("ok", "failed")


def _share(description: str) -> Any:
    return column(dy.Float64, description, unit="share of prompts", nullable=True)


def _step_mean(description: str, unit: str | None = None) -> Any:
    return column(dy.Float64, f"{description} Mean over the steps of the last epoch.", unit=unit, nullable=True)


def _id(description: str) -> Any:
    return column(dy.String, f"Id of {description}.", nullable=True)


class Comparison(Table):
    """One trial: an algorithm trained on the snapshot with one seed for some epochs, and judged on the held-out prompts.

    Figures of training are means of the table metrics over the last epoch. Intervals are bootstraps over prompts. A trial that
    failed has its error and null in place of figures.

    Example:
        {
            "label": "rec-oneside-nois:trust_region.high=0.3",
            "algorithm": "rec-oneside-nois",
            "seed": 0,
            "epoch": 4,
            "status": "ok",
            "error": None,
            "pass_at_1": 0.402832,
            "pass_at_1_low": 0.379395,
            "pass_at_1_high": 0.427246,
            "greedy": 0.109375,
            "greedy_low": 0.074219,
            "greedy_high": 0.148438,
            "reward_mean": 0.402832,
            "completion_tokens_mean": 13.547852,
            "steps": 8,
            "loss": -0.034575,
            "grad_norm": 0.063218,
            "entropy": 0.273927,
            "kl_behavior": 0.011371,
            "ess": 0.833286,
            "clip_fraction_positive": 0.039855,
            "clip_fraction_negative": 0.096469,
            "ratio_q01": 0.533416,
            "ratio_q10": 0.876685,
            "ratio_q50": 1.0,
            "ratio_q90": 1.000152,
            "ratio_q99": 1.40971,
            "shaped_id": "54bb98c149faba21323b0111d2acd7ba0f659f1155dd11dfb2e9f69de274faca",
            "checkpoint_id": "e023ef3aef2ac917b05cff8934a00dbc429538bd12dac3da3621e6b7dc60b4c7",
            "sampled_id": "4c49cf296e81ac9bb8485755910cc2d1e8319663c3fe5b0cefbf3e2c4afbefd4",
            "greedy_id": "1474379ec48809aba33f7a5b3cae999df6cc13a5066ef932cac67a04263888e3",
            "evaluation_id": "7c5b581c442f76b1d73dbefc596c1400d3e47a20af6c6ca6822151c9dee8f976",
        }
    """

    label = column(dy.String, "The algorithm as it was asked for, its settings included.", primary_key=True)
    algorithm = column(dy.String, "Its name.")
    seed = column(dy.Int64, "Seed of the training: the order of groups, and draws of shaping.", primary_key=True, min=0)
    epoch = column(dy.Int32, "Passes over the snapshot after which it was judged.", primary_key=True, min=1)
    status = column(dy.String, f"One of {', '.join(STATUSES)}.", check=one_of(*STATUSES))
    error = column(dy.String, "Why it failed.", nullable=True)
    pass_at_1 = _share("Held-out pass@1.")
    pass_at_1_low = _share("Lower end of its 95 % bootstrap interval over prompts.")
    pass_at_1_high = _share("Upper end.")
    greedy = _share("Held-out accuracy at temperature 0.")
    greedy_low = _share("Lower end of its interval.")
    greedy_high = _share("Upper end.")
    reward_mean = column(dy.Float64, "Mean reward of the sampled held-out completions.", nullable=True)
    completion_tokens_mean = column(dy.Float64, "Their mean length.", unit="tokens", nullable=True)
    steps = column(dy.Int32, "Optimizer steps.", nullable=True)
    loss = _step_mean("The loss.")
    grad_norm = _step_mean("Norm of the gradient before clipping.")
    entropy = _step_mean("Entropy of the next-token distribution.", "nats")
    kl_behavior = _step_mean("KL(mu || pi) per token.", "nats")
    ess = _step_mean("Effective sample size of the sequence ratios.", "share of completions")
    clip_fraction_positive = _step_mean("Tokens with A > 0 that the trust region stopped.", "share of tokens")
    clip_fraction_negative = _step_mean("Tokens with A < 0 that the trust region stopped.", "share of tokens")
    ratio_q01 = _step_mean("1 % quantile of the token ratio pi/mu.")
    ratio_q10 = _step_mean("10 % quantile.")
    ratio_q50 = _step_mean("Median.")
    ratio_q90 = _step_mean("90 % quantile.")
    ratio_q99 = _step_mean("99 % quantile.")
    shaped_id = _id("the shaped table")
    checkpoint_id = _id("the checkpoint")
    sampled_id = _id("the sampled held-out answers")
    greedy_id = _id("the greedy held-out answers")
    evaluation_id = _id("the evaluation")

    @rule
    def a_failed_trial_says_why(cls) -> pl.Expr:
        return (pl.col("status") == "ok") | pl.col("error").is_not_null()

    @rule
    def a_trial_that_is_ok_has_its_artifacts(cls) -> pl.Expr:
        there = pl.all_horizontal(pl.col("shaped_id", "checkpoint_id", "sampled_id", "evaluation_id").is_not_null())
        return (pl.col("status") == "failed") | there


class ComparisonTiming(Table):
    """Wall time of the processes that finished a trial's artifacts. Trials that share one count it each.

    Written beside the comparison, and no part of its id.

    Example:
        {
            "label": "rec-oneside-nois:trust_region.high=0.3",
            "seed": 0,
            "epoch": 4,
            "shape_seconds": 0.124,
            "score_seconds": None,
            "train_seconds": 14.84,
            "generate_seconds": 15.85,
            "evaluate_seconds": 0.343,
        }
    """

    label = column(dy.String, "As in the comparison.", primary_key=True)
    seed = column(dy.Int64, "As in the comparison.", primary_key=True, min=0)
    epoch = column(dy.Int32, "As in the comparison.", primary_key=True, min=1)
    shape_seconds = column(dy.Float64, "Shaping.", unit="s", nullable=True)
    score_seconds = column(dy.Float64, "Logprobs under frozen checkpoints.", unit="s", nullable=True)
    train_seconds = column(dy.Float64, "Training.", unit="s", nullable=True)
    generate_seconds = column(dy.Float64, "Held-out answers.", unit="s", nullable=True)
    evaluate_seconds = column(dy.Float64, "Figures from them.", unit="s", nullable=True)
