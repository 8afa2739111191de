"""What is checked before the first step: lengths, the attention, the model's code, and the stored logprobs.

What fails is not trained, and not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.train import TrainConfig
from pipeline.train.attention import Kind, Own, Wanted
from pipeline.train.batch import Batch, collate
from pipeline.train.family import is_capped, why_alone
from pipeline.train.metrics import StepRecord
from pipeline.train.model import CompilerError, Policy
from pipeline.train.plan import micro_batches
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.tree import PackedRow

LARGEST_DIFFERENCE = 1e-3
"""|packed - separate| logprob of any token, nats, that is accepted in float32: far above rounding, far below a wrong mask."""
MEAN_DIFFERENCE = 0.2
"""The same of the mean over tokens, which decides in bfloat16: near a logit of 32 its neighbors are 0.25 apart, so single
tokens differ by 0.4 and the mean by 0.06 without any fault. A mask that leaks moves the mean by several nats."""
PROBE_TOKENS = 96
"""Longest sequence that is compared."""
WAY_OUT = "This architecture cannot be trained with prompts shared in a row: leave train.attention at auto, or set it to alone"
NO_WAY = "The trainer does not compute what this model computes, so it neither trains nor scores it"


class NotFinite(UserError):
    """The model's own logprobs are not finite."""


class NotItsOwn(UserError):
    """Logprobs are not the model's own."""

    def __init__(self, message: str, nats: float) -> None:
        super().__init__(message)
        self.nats = nats


def make_ready(policy: Policy, example: TrainingGroup, longest: int, attention: Wanted, notify: Callable[[str], None]) -> None:
    """Make sure that a policy gives the logprobs of the model alone on sequences of such lengths.

    If its attention is chosen automatically and fails, the next one is tried, at last one completion a row by the model's own
    attention; what is taken and why is said.

    Args:
        example: some group of the data; the check is made on tokens that occur in it.
        longest: tokens of the longest prompt with its completion.

    Raises:
        UserError: as `self_check`, of the attention that was asked for or of the last one; or packed rows were asked for, which
            cannot hold such sequences.
    """
    reason = why_alone(policy.model, longest)
    if reason and attention not in ("auto", "alone"):
        raise UserError(
            f"{policy.model.config.model_type}: {reason}; packed rows (train.attention={attention}) do not know of that. Leave "
            "train.attention at auto, or set it to alone: one completion a row"
        )
    ways = _ways(policy, attention, packed=reason is None)
    for number, (kind, own) in enumerate(ways):
        try:
            policy.use_attention(kind, own)
            for batch in probes(policy, example, longest):
                self_check(policy, batch)
            break
        except (CompilerError, NotFinite):
            raise
        except Exception as error:
            if number + 1 == len(ways):
                raise
            if kind != "alone":
                why = f"it is {error.nats:.3g} nats off" if isinstance(error, NotItsOwn) else " ".join(str(error).split())[:200]
                reason = f"attention {kind} does not work here ({why})"
    if reason:
        notify(_what_is_used(policy, reason))


def _ways(policy: Policy, wanted: Wanted, *, packed: bool) -> list[tuple[Kind, Own]]:
    """What to try, in this order."""
    alone: list[tuple[Kind, Own]] = [("alone", "eager")] if is_capped(policy.model) else [("alone", "sdpa"), ("alone", "eager")]
    if wanted == "alone":
        return alone
    chosen: list[tuple[Kind, Own]] = [(policy.attention, "eager")]
    if wanted != "auto":
        return chosen
    dense: list[tuple[Kind, Own]] = [("sdpa", "eager")]
    return [*(dict.fromkeys([*chosen, *dense]) if packed else ()), *alone]


def _what_is_used(policy: Policy, reason: str) -> str:
    name = f"{policy.model.config.model_type}: {reason}"
    if policy.attention != "alone":
        return f"{name}; {policy.attention} is used"
    apart = "" if policy.cost_model().mixes_lengths else ", each in a pass of its own"
    slow = ", which holds scores of length x length" if policy.own == "eager" and _has_attention(policy.model) else ""
    return (
        f"{name}; every completion is computed in a row of its own{apart}, by the model's own attention ({policy.own}{slow}), "
        "and every prompt once for each of its completions"
    )


def _has_attention(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "num_attention_heads", None))


def probes(policy: Policy, example: TrainingGroup, longest: int) -> list[Batch]:
    """`probe`, laid out as the policy's attention wants it."""
    rows, cost = probe_rows(example, longest), policy.cost_model()
    if cost.shares:
        return [collate(rows, policy.device)]
    cut = micro_batches(rows, token_budget=len(rows) * PROBE_TOKENS, cost=cost)
    return [collate(part, policy.device) for part in cut]


def probe(example: TrainingGroup, longest: int, device: torch.device) -> Batch:
    """Two groups of three completions each, of tokens that occur in the data. Some start alike.

    Real rows would not do: one completion alone in its row, or completions of one token, give the same whatever they see.
    """
    return collate(probe_rows(example, longest), device)


def probe_rows(example: TrainingGroup, longest: int) -> list[PackedRow]:
    """The rows of `probe`, a group each."""
    known = np.unique(np.concatenate([[0, 1], example.prompt, *(completion.tokens for completion in example.completions)]))
    draw = np.random.default_rng(0)
    length = max(8, min(longest, PROBE_TOKENS))

    def tokens(count: int) -> Any:
        return draw.choice(known, count).astype(np.int32)

    def group(name: str, prompt: int, lengths: tuple[int, ...]) -> TrainingGroup:
        drawn = [tokens(count) for count in lengths]
        for one in drawn:
            one[: len(one) // 4] = max(drawn, key=len)[: len(one) // 4]
        completions = [TrainingCompletion(name, index, one, None, np.ones(len(one), np.bool_)) for index, one in enumerate(drawn)]
        return TrainingGroup(tokens(prompt), completions)

    most = length - length // 4
    groups = group("a", length // 4, (most, most // 2, most // 2)), group("b", length // 8, (2, most, most // 3))
    return [PackedRow.of(one, one.completions) for one in groups]


def self_check(policy: Policy, batch: Batch) -> None:
    """Compare a policy's logprobs with the model's own logits on [prompt, completion] alone, for every completion of some rows.

    flex_attention's kernels are compiled for each direction, so there its backward pass must work too.

    Raises:
        NotFinite: the model's own are not.
        NotItsOwn: they differ by more than rounding, as with a model whose attention ignores the mask it is given, or whose
            logits are not what `logits.py` knows of.
    """
    found = differences(policy, batch)
    difference, limit = (found.max(), LARGEST_DIFFERENCE) if policy.dtype == "float32" else (found.mean(), MEAN_DIFFERENCE)
    if not difference <= limit:
        how = f"attention: {policy.attention}" + (f", {policy.own}" if policy.attention == "alone" else "")
        what = "rows of one completion" if policy.attention == "alone" else "packed rows"
        raise NotItsOwn(
            f"{policy.model.config.model_type}: {what} give logprobs that differ by {difference:.3g} nats from the model's own "
            f"({how}). {NO_WAY if policy.attention == 'alone' else WAY_OUT}",
            float(difference),
        )
    if policy.attention == "flex" and policy.parameters:
        torch.autograd.backward(policy.hidden(batch, policy.cut(batch)).sum())
        for parameter in policy.parameters.values():
            parameter.grad = None


def differences(policy: Policy, batch: Batch) -> Tensor:
    """|of these rows - separate| logprob of every completion token of a batch, nats.

    Raises:
        NotFinite: those of the model alone are not.
    """
    packed = policy.logprobs(batch)[0]
    with torch.no_grad():
        return torch.cat([(packed[here] - alone).abs() for here, alone in _alone(policy, batch)])


def _alone(policy: Policy, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Which tokens are a completion's, and their logprobs without the others."""
    length = batch.input_ids.shape[1]
    for number in range(len(batch.flat.completions)):
        here = batch.flat.sequence == number
        targets = batch.flat.targets[here]
        row, last = divmod(int(batch.predicted_from[here][-1]), length)
        path = batch.input_ids[row, : last + 1][batch.end[row, : last + 1] > last]
        logits = policy.logits(path)[-len(targets) :]
        found = (logits / batch.flat.temperature[here, None]).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        if not found.isfinite().all():
            raise NotFinite(
                f"{policy.model.config.model_type}: the model's logprobs are not finite before the first step; its weights hold "
                "NaN or infinity. Restore the checkpoint from a copy, or start from an earlier one"
            )
        yield here, found


def check_difference(record: StepRecord, config: TrainConfig) -> dict[str, float] | None:
    """Compare stored logprobs with those before the first step, on what the parent drew: other policies' differ.

    Returns:
        Columns of the metrics table; None if there is nothing to compare.

    Raises:
        UserError: they differ by more than train.max_logprob_difference.
    """
    found = record.logprob_difference()
    if found is None:
        return None
    mean, largest = found
    if mean > config.max_logprob_difference:
        raise UserError(
            f"the trainer's logprobs differ from the stored ones by {mean:.4f} nats per token on average (largest "
            f"{largest:.4f}), more than train.max_logprob_difference={config.max_logprob_difference}. Likely causes: "
            "the rollouts are not from this checkpoint; they hold raw logprobs at a temperature other than 1; the text was "
            "tokenised again; engine and trainer use other number formats or model code"
        )
    return {"logprob_difference_mean": mean, "logprob_difference_max": largest}
