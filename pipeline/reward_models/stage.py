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
from pipeline.reward_models.model import ScalarModel
from pipeline.reward_models.packing import TokenPair, Tokens
from pipeline.reward_models.texts import TextPair, split, text_pairs
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import verified
from pipeline.train import resume
from pipeline.train.plan import steps_of_epoch
from pipeline.train.team import alone


def train_reward_model(spec: Event, reporter: Reporter) -> Event:
    """Make the reward model of a spec. One that was killed goes on from its last resume point.

    Args:
        spec: store, request, model (path of a checkpoint artifact), rollouts (paths of artifacts), pass_tokens,
            save_every_steps, trust_remote_code.

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
        fit = _Learning(model, recipe, work, spec, reporter)
        fit.run(train)
        model.save(work.path)
        judged = {"training": fit.judged(train), "heldout": fit.judged(heldout)}
        notes = {"attention": model.attention, "packing": model.packing.shares() | {"passes": model.packing.passes}}
        return {"artifact": str(work.finish({**judged, "steps": fit.steps}, notes=notes).path)}


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

    def __init__(self, model: ScalarModel, recipe: dict[str, Any], work: Work, spec: Event, reporter: Reporter) -> None:
        """
        Args:
            spec: pass_tokens, save_every_steps.
        """
        self._model, self._recipe, self._work, self._reporter = model, recipe, work, reporter
        self._most, self._save_every = spec["pass_tokens"], spec["save_every_steps"]
        self._tokens: dict[str, Tokens] = {}
        self._masters: dict[str, torch.nn.Parameter] = dict(model.model.named_parameters())
        self.steps = 0

    def run(self, pairs: Sequence[TextPair]) -> None:
        """Take every step that is still to be taken. All pairs of a prompt are in one step, so that it is computed once."""
        recipe, masters = self._recipe, list(self._masters.values())
        adam = torch.optim.AdamW(masters, lr=recipe["learning_rate"], betas=(0.9, 0.95), weight_decay=recipe["weight_decay"])
        of_prompt: dict[str, list[TextPair]] = {}
        for pair in pairs:
            of_prompt.setdefault(pair.prompt, []).append(pair)
        prompts, sizes = list(of_prompt), [len(own) for own in of_prompt.values()]
        plan = [
            [pair for number in step for pair in of_prompt[prompts[number]]]
            for epoch in range(recipe["epochs"])
            for step in steps_of_epoch(prompts, sizes, recipe["batch_pairs"], recipe["seed"], epoch)
        ]
        self._model.model.eval()  # without dropout, as all trainings here
        self._model.make_ready([self._pair(pair) for pair in pairs], self._reporter.note)
        self.steps, records = resume.load(self._work.scratch, self._masters, adam, alone())
        for taken in plan[self.steps :]:
            loss = self._gradient(taken)
            torch.nn.utils.clip_grad_norm_(masters, recipe["max_grad_norm"])
            for group in adam.param_groups:
                group["lr"] = recipe["learning_rate"] * _factor(self.steps, len(plan), recipe["warmup"])
            adam.step()
            adam.zero_grad(set_to_none=True)
            self.steps += 1
            self._reporter.progress(self.steps, len(plan), f"steps, loss {loss:.3f}")
            if self.steps % self._save_every == 0 and self.steps < len(plan):
                self._work.keep(resume.save(self._work.scratch, self.steps, self._masters, adam, records, alone()))

    def _gradient(self, pairs: Sequence[TextPair]) -> float:
        """Add the gradient of a step's mean loss. Returns that."""
        total = 0.0
        texts = [self._pair(pair) for pair in pairs]
        for part in self._model.passes(texts, self._most):
            taken = [pairs[number] for number in part]
            scores = self._model.scores([texts[number] for number in part])
            columns = ([pair.preference for pair in taken], [pair.margin * self._recipe["margin_scale"] for pair in taken])
            preference, margin = (torch.tensor(column, device=scores.device) for column in columns)
            loss = bradley_terry(scores[:, 0] - scores[:, 1], preference, margin).sum() / len(pairs)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def judged(self, pairs: Sequence[TextPair]) -> dict[str, Any]:
        """Figures on pairs."""
        texts = [self._pair(pair) for pair in pairs]
        scores = np.zeros((len(pairs), 2))
        with torch.inference_mode():
            for part in self._model.passes(texts, self._most):
                scores[part] = self._model.scores([texts[number] for number in part]).double().cpu().numpy()
        return figures(pairs, scores, self._recipe["seed"])

    def _pair(self, pair: TextPair) -> TokenPair:
        """Tokens of both texts."""
        return self._text(pair.chosen, pair.prompt), self._text(pair.rejected, pair.prompt)

    def _text(self, text: str, prompt: str) -> Tokens:
        if text not in self._tokens:
            (found,) = self._model.tokens([text])
            if not 0 < len(found) <= self._model.longest:
                raise DataError(
                    f"the completion of prompt {prompt[:80]!r} has {len(found)} tokens with its prompt, and the model takes 1 to "
                    f"{self._model.longest}. Leave them out, or name a model that takes more"
                )
            self._tokens[text] = tuple(found)
        return self._tokens[text]


def _factor(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate: linear up, then a cosine to 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
