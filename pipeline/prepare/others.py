"""The models that a run needs beside its own: what they must be, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.cell import PROXIMAL, REFERENCE
from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.sources import models as base_model
from pipeline.sources.same_tokens import check_same_tokens

Files = Mapping[str, Path]
"""Of a model, by name."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Models of a run beside its own, by their files. Checkpoints of the run stand as the base model: they are as large."""

    drawn_by: tuple[Files, ...] = ()
    """What engines hold beside the policy, one at a time."""
    scored_by: tuple[Files, ...] = ()
    """Whose logprobs are computed before a training, one after the other."""
    elsewhere: tuple[Files, ...] = ()
    """What becomes a checkpoint of the store beside the base."""


def beside(settings: Sequence[tuple[RunConfig, Algorithm]], files: Files) -> Beside:
    """The other models of a run, if it can do with them.

    Args:
        settings: of the run, one after the other, with their algorithms.
        files: of the run's model.

    Raises:
        UserError: as `reference_files` and `mixture_files`.
    """
    drawn_by: list[Files] = []
    scored_by: list[Files] = []
    elsewhere: dict[str, Files] = {}
    for here, algorithm in settings:
        reference, other = reference_files(here, files), mixture_files(here, files)
        if reference and REFERENCE in algorithm.needs and here.reference.path:
            elsewhere[here.reference.path] = reference
        if other and (path := mixture_path(here)):
            elsewhere[path] = other
        drawn_by += [other] if other else []
        scored_by += [reference or files] if REFERENCE in algorithm.needs else []
        scored_by += [files] if PROXIMAL in algorithm.needs else []
    return Beside(drawn_by=tuple(drawn_by), scored_by=tuple(scored_by), elsewhere=tuple(elsewhere.values()))


def reference_files(config: RunConfig, files: Files) -> Files | None:
    """The files of a reference that is no checkpoint of the run; None if it is one.

    Args:
        files: of the run's model.

    Raises:
        UserError: no model there, or one of other tokens.
    """
    return None if config.reference.path is None else _other_model(config, config.reference.path, files, "reference")


def mixture_path(config: RunConfig) -> str | None:
    """Where the model is that completions are drawn by beside the policy; None if there is none, or a checkpoint of the run."""
    mixture = config.generate.mixture
    if mixture is None or mixture.share == 0 or mixture.with_ == "behavior":
        return None
    return config.reference.path if mixture.with_ == "reference" else mixture.with_


def mixture_files(config: RunConfig, files: Files) -> Files | None:
    """The files of the model that completions are drawn by beside the policy: the base's for a checkpoint of the run. None if
    the policy draws alone.

    Args:
        files: of the run's model.

    Raises:
        UserError: no model there, or one of other tokens, or whose logits are of another number of them.
    """
    mixture, path, place = config.generate.mixture, mixture_path(config), "generate.mixture.with"
    if mixture is None or mixture.share == 0:
        return None
    if path is None:  # in the first iteration, that may be the policy itself
        return files if config.iterations > 1 else None
    other = _other_model(config, path, files, place)
    ours, theirs = (base_model.vocabulary(one["config.json"]) for one in (files, other))
    if ours != theirs:
        raise UserError(
            f"{place}: {path}: its vocabulary has {theirs} entries, and that of this run's model {ours}; a mixture adds logits "
            "entry by entry. Name a model whose config.json has the same vocab_size"
        )
    return other


def _other_model(config: RunConfig, path: str, files: Files, where: str) -> dict[str, Path]:
    """The files of a model with the same tokens."""
    section = config.model.model_copy(update={"path": path, "revision": None})
    try:
        other = base_model.model_files(base_model.locate(section), trust_remote_code=section.trust_remote_code)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('model.path: ')}") from None
    check_same_tokens(files["tokenizer.json"], other.get("tokenizer.json", Path("none")), f"{where}: {path}")
    return other
