"""Rollouts: what a policy answered, token by token, and under which distribution."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, one_of, rule

STATUSES = ("ok", "truncated", "reward_error", "engine_error")
ENVIRONMENT_ERROR = "environment_error"
"""Status beside these of an episode whose environment could not go on."""
FAILED = ("reward_error", "engine_error", ENVIRONMENT_ERROR)
"""Statuses of rows without a reward, or without one that counts."""
EPISODE_ENDS = ("turns", "tokens", "context")
"""How an episode is cut: by its limit of turns, by its limit of tokens, by a context that is full."""
CUT = ("length", *EPISODE_ENDS)
"""`finish_reason` of completions with status truncated: length is a turn's, or a completion's, own limit."""
CONTINUED = "continued"
"""`finish_reason` of a turn that is a row, where its episode goes on in the next row of the group. Both have one reward."""
SOURCES = ("self", "expert", "replay", "import")


class Rollouts(Table):
    """One completion of one prompt by one policy. A group never spans two files.

    Nothing is thrown away: a completion that failed is a row with a status and its error. `behavior_logprobs` and `action_mask`
    have one value for each of `completion_token_ids`, in its order; the logprob of a token that nobody drew is 0. Written by
    generate and by imports, one file a shard. Of an episode, whose tokens are partly an environment's, `turns` beside it says who
    spoke when, status may be environment_error, and finish_reason turns, tokens or context, where a limit of the episode or of
    the context cut it.

    Example:
        {
            "group_id": "arith-train-02269@4f37dbfe",
            "sample_index": 7,
            "prompt_id": "arith-train-02269",
            "prompt_token_ids": [51, 28, 19, 26, 13, 22, 18, 15, 20, 31],
            "completion_token_ids": [223, 35, 28, 23, 24, 1],
            "behavior_logprobs": [-0.2884523, 0.0, -3.5762781e-07, -0.6509772, -2.1304967, -1.3708975e-05],
            "action_mask": None,
            "prompt_text": "Q:18+40-2=",
            "completion_text": " A:56",
            "answer": "56",
            "finish_reason": "stop",
            "reward": 1.0,
            "policy_id": "cc703aa7b8d6c2c296b794afbf7eda999e7b0b54f669629f4cebc32fad94155e",
            "policy_version": 0,
            "source": "self",
            "seed": 17947848914220075,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "logprobs_mode": "processed_logprobs",
            "engine": "vllm 0.32.0 cpu float32",
            "status": "ok",
            "error": None,
            "reward_regex": 1.0,
        }
    """

    extra_prefixes = ("reward_",)

    group_id = column(dy.String, "All completions of one prompt by one policy in one artifact.", primary_key=True)
    sample_index = column(dy.Int32, "Number of the completion in its group, from 0.", primary_key=True, min=0)
    prompt_id = column(dy.String, "The prompt's name in the prompts artifact.")
    prompt_token_ids = column(dy.List, "Tokens given to the engine.", dy.Int32(min=0))
    completion_token_ids = column(
        dy.List, "Tokens the policy drew, the end-of-sequence token included if it drew it.", dy.Int32(min=0)
    )
    behavior_logprobs = column(
        dy.List,
        "log mu of each completion token under the distribution it was drawn from. Null if unknown.",
        dy.Float32(max=0.0),
        unit="nats",
        nullable=True,
    )
    action_mask = column(
        dy.List, "True for tokens the policy drew, False for tools' and environments'. Null: all.", dy.Bool(), nullable=True
    )
    prompt_text = column(dy.String, "The prompt as text.")
    completion_text = column(dy.String, "The completion as text, without special tokens and stop texts.")
    answer = column(dy.String, "The reference answer that it was graded against.", nullable=True)
    finish_reason = column(dy.String, "stop, length or the engine's own word.", nullable=True)
    reward = column(dy.Float64, "Weighted sum of the reward_* columns. Null if a grader failed.", nullable=True)
    policy_id = column(dy.String, "Id of the checkpoint artifact that answered. Of an import, the model's name, or unknown.")
    policy_version = column(dy.Int32, "Iteration of that checkpoint; 0 is the base model. 0 of an import.", min=0)
    source = column(dy.String, f"Where the completion comes from: {', '.join(SOURCES)}.", check=one_of(*SOURCES))
    seed = column(dy.Int64, "Seed of the engine's generator for this completion.", nullable=True)
    temperature = column(dy.Float64, "Divisor of the logits; 0 is greedy. Null if unknown.", nullable=True, min=0.0)
    top_p = column(dy.Float64, "Nucleus share; 1 keeps all.", nullable=True)
    top_k = column(dy.Int32, "Number of likeliest tokens kept; 0 keeps all.", nullable=True)
    min_p = column(dy.Float64, "Least share of the likeliest token's probability; 0 keeps all.", nullable=True)
    logprobs_mode = column(
        dy.String,
        "processed_logprobs: after temperature and cuts, the sampling density. raw_logprobs: before them. scored: computed "
        "later under a checkpoint that the recipe names, at the row's temperature (1 if unknown), without cuts. unknown.",
        check=one_of("processed_logprobs", "raw_logprobs", "scored", "unknown"),
    )
    engine = column(dy.String, "Program, version, device and number format that generated.")
    status = column(dy.String, f"One of {', '.join(STATUSES)}.", check=one_of(*STATUSES, ENVIRONMENT_ERROR))
    error = column(dy.String, "Why the status is not ok.", nullable=True)

    @rule
    def one_logprob_per_completion_token(cls) -> pl.Expr:
        logprobs = pl.col("behavior_logprobs")
        return logprobs.is_null() | (logprobs.list.len() == pl.col("completion_token_ids").list.len())

    @rule
    def one_mask_value_per_completion_token(cls) -> pl.Expr:
        mask = pl.col("action_mask")
        return mask.is_null() | (mask.list.len() == pl.col("completion_token_ids").list.len())

    @rule
    def a_graded_completion_has_a_finite_reward(cls) -> pl.Expr:
        failed = pl.col("status").is_in(FAILED)
        return failed | (pl.col("reward").is_not_null() & pl.col("reward").is_finite())

    @rule
    def a_failed_completion_says_why(cls) -> pl.Expr:
        failed = pl.col("status").is_in(FAILED)
        return ~failed | pl.col("error").is_not_null()


def ends_episode() -> pl.Expr:
    """Whether a row is a completion's only or last one: what counts completions counts these."""
    return pl.col("finish_reason").ne_missing(CONTINUED)
