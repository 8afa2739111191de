"""The reward stage: a head of one output is trained, with the model under it, to score what was preferred higher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import DataError
from pipeline.config.reward_model import PairsConfig
from pipeline.reward_models.figures import figures
from pipeline.reward_models.model import ScalarModel, passes
from pipeline.reward_models.texts import TextPair, split, text_pairs
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store
from pipeline.store.store import verified


def train_reward_model(spec: Event, reporter: Reporter) -> Event:
    """Make the reward model of a spec. One that was killed begins anew.

    Args:
        spec: store, request, model (path of a checkpoint artifact), rollouts (paths of artifacts), pass_tokens,
            trust_remote_code.

    Returns:
        {"artifact": path}.

    Raises:
        DataError: nothing says which completions are better, or a text is longer than the model takes.
        UserError: the model cannot have a head of one output.
    """
    request = Request.from_json(spec["request"])
    with Store(spec["store"], reporter.note).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        recipe = request.recipe
        pairs = PairsConfig.model_validate({**recipe["pairs"], "rollouts": spec["rollouts"]})
        train, heldout = split(text_pairs([verified(path) for path in spec["rollouts"]], pairs), pairs.heldout, recipe["seed"])
        path = verified(spec["model"]).path
        model = ScalarModel(path, recipe["dtype"], recipe["seed"], trust_remote_code=spec["trust_remote_code"])
        fit = _Learning(model, recipe, spec["pass_tokens"])
        fit.run(train, reporter)
        model.save(work.path)
        judged = {"training": fit.judged(train), "heldout": fit.judged(heldout)}
        return {"artifact": str(work.finish({**judged, "steps": fit.steps}).path)}


def bradley_terry(difference: Tensor, preference: Tensor, margin: Tensor) -> Tensor:
    """-p log sigmoid(d - m) - (1 - p) log sigmoid(m - d) of each pair, with d = r(chosen) - r(rejected).

    At d = m it is log 2, whatever p. At p = 1/2 and m = 0 its least value is there: a tie pulls scores together. Of d = 2, p = 1
    and m = 0 it is log(1 + e^-2) = 0.126928.
    """
    shifted = difference - margin
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(preference * log_sigmoid(shifted) + (1 - preference) * log_sigmoid(-shifted))


class _Learning:
    """One training."""

    def __init__(self, model: ScalarModel, recipe: dict[str, Any], pass_tokens: int) -> None:
        self._model, self._recipe, self._most = model, recipe, pass_tokens
        self._tokens: dict[str, list[int]] = {}
        self.steps = 0

    def run(self, pairs: Sequence[TextPair], reporter: Reporter) -> None:
        recipe, parameters = self._recipe, list(self._model.model.parameters())
        adam = torch.optim.AdamW(parameters, lr=recipe["learning_rate"], betas=(0.9, 0.95), weight_decay=recipe["weight_decay"])
        size = recipe["batch_pairs"]
        total = recipe["epochs"] * math.ceil(len(pairs) / size)
        draw = np.random.default_rng(recipe["seed"])
        self._model.model.eval()  # without dropout, as all trainings here
        for _ in range(recipe["epochs"]):
            order = draw.permutation(len(pairs))
            for start in range(0, len(pairs), size):
                loss = self._gradient([pairs[number] for number in order[start : start + size]])
                torch.nn.utils.clip_grad_norm_(parameters, recipe["max_grad_norm"])
                for group in adam.param_groups:
                    group["lr"] = recipe["learning_rate"] * _factor(self.steps, total, recipe["warmup"])
                adam.step()
                adam.zero_grad(set_to_none=True)
                self.steps += 1
                reporter.progress(self.steps, total, f"steps, loss {loss:.3f}")

    def _gradient(self, pairs: Sequence[TextPair]) -> float:
        """Add the gradient of a step's mean loss. Returns that."""
        total = 0.0
        pairs = sorted(pairs, key=self._length)
        for part in passes([2 * self._length(pair) for pair in pairs], self._most):
            taken = [pairs[number] for number in part]
            scores = self._scores(taken)
            columns = ([pair.preference for pair in taken], [pair.margin * self._recipe["margin_scale"] for pair in taken])
            preference, margin = (torch.tensor(column, device=scores.device) for column in columns)
            loss = bradley_terry(scores[:, 0] - scores[:, 1], preference, margin).sum() / len(pairs)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def judged(self, pairs: Sequence[TextPair]) -> dict[str, Any]:
        """Figures on pairs."""
        parts = []
        with torch.inference_mode():
            for part in passes([2 * self._length(pair) for pair in pairs], self._most):
                parts.append(self._scores([pairs[number] for number in part]).double().cpu().numpy())
        return figures(pairs, np.concatenate(parts), self._recipe["seed"])

    def _scores(self, pairs: Sequence[TextPair]) -> Tensor:
        """[pairs, 2]"""
        texts = [self._tokens[text] for pair in pairs for text in (pair.chosen, pair.rejected)]
        return self._model.scores(texts).view(len(pairs), 2)

    def _length(self, pair: TextPair) -> int:
        """Tokens of the longer text."""
        for text in (pair.chosen, pair.rejected):
            if text not in self._tokens:
                (self._tokens[text],) = self._model.tokens([text])
                if not 0 < len(self._tokens[text]) <= self._model.longest:
                    raise DataError(
                        f"the completion of prompt {pair.prompt[:80]!r} has {len(self._tokens[text])} tokens with its prompt, "
                        f"and the model takes 1 to {self._model.longest}. Leave them out, or name a model that takes more"
                    )
        return max(len(self._tokens[text]) for text in (pair.chosen, pair.rejected))


def _factor(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate: linear up, then a cosine to 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
