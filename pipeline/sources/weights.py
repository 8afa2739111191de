"""Whether a model's files hold every weight that it needs: by the names in their headers, without reading the weights.

vLLM loads a model without its head, or without a projection, and says nothing; what it then computes with is whatever the
memory held. transformers knows which names belong together: weights that are tied, renamed, or kept in other pieces.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.sources.headers import looks_incomplete

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_NAMED = 4
"""Missing weights that a refusal names."""


def refuse_missing_weights(directory: Path, *, trust_remote_code: bool = False) -> None:
    """Raise for a model whose files lack weights, or hold some of another shape.

    Raises:
        UserError: names them.
    """
    lacking = lacking_weights(directory, trust_remote_code=trust_remote_code)
    if lacking:
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        raise UserError(
            f"{directory}: its files lack {', '.join(lacking[:MOST_NAMED])}{more}, which the model of config.json needs. "
            "Engines would compute with whatever the memory holds. Restore the files, or mend config.json"
        )


def refuse_without_head(directory: Path) -> None:
    """The same of the head alone, where the files say that it is needed: in no time, since no library is asked.

    Raises:
        UserError: the config says that embedding and head are not tied, and only one tensor is as large as the vocabulary.
    """
    settings, shapes = _settings(directory), _shapes(directory)
    text = settings.get("text_config", settings)
    untied = settings.get("tie_word_embeddings") is False and "quantization_config" not in settings
    if not untied or not isinstance(text, dict) or shapes is None:
        return
    large = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == text.get("vocab_size")]
    if len(large) == 1 and large[0].endswith("embed_tokens.weight"):
        raise UserError(
            f"{directory}: config.json says tie_word_embeddings: false, and the weights' files hold {large[0]} but no head "
            "(lm_head.weight); engines would compute with whatever the memory holds. Restore the files, or mend config.json"
        )


def refuse_incomplete(directory: Path, *, trust_remote_code: bool) -> None:
    """`refuse_missing_weights` where the names in the files' headers give cause for it: of a sound model no library is asked.

    Raises:
        UserError: names what is missing.
    """
    refuse_without_head(directory)
    settings, shapes = _settings(directory), _shapes(directory)
    text = settings.get("text_config", settings)
    layers = text.get("num_hidden_layers") if isinstance(text, dict) else None
    if shapes is not None and looks_incomplete(shapes, layers if isinstance(layers, int) else None):
        refuse_missing_weights(directory, trust_remote_code=trust_remote_code)


def lacking_weights(directory: Path, *, trust_remote_code: bool) -> list[str]:
    """Names of weights that a model's files lack, and of those that they hold in another shape (with both shapes).

    Nothing is said of what transformers does not know or keeps in other types: quantized models, other file names.
    """
    with silent_transformers():
        return _lacking(directory, trust_remote_code)


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Nothing is loaded here: neither bars of loading nor remarks on the config belong on the user's terminal."""
    import transformers.utils.logging

    says: Any = transformers.utils.logging
    level, has_bars = says.get_verbosity(), says.is_progress_bar_enabled()
    says.set_verbosity(logging.CRITICAL)
    says.disable_progress_bar()
    try:
        yield
    finally:
        says.set_verbosity(level)
        if has_bars:
            says.enable_progress_bar()


def _lacking(directory: Path, trust_remote_code: bool) -> list[str]:
    shapes = _shapes(directory)
    made = None if shapes is None else _class_of(directory, trust_remote_code)
    if shapes is None or made is None:
        return []
    import torch

    kind, config = made
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, RuntimeError, ImportError, NotImplementedError, AttributeError):
        return []  # what transformers cannot load it says when it is asked to
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    other = [f"{name} as {list(wanted)} (it is {list(there)})" for name, there, wanted in sorted(found["mismatched_keys"])]
    return [*sorted(weights & set(found["missing_keys"])), *other]


def keep_apart(model: Any) -> None:
    """Give weights that share memory, but are not tied by the config, memory of their own: of shared ones only one is saved,
    and the other would be missing when the model is loaded again."""
    import torch

    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    seen: set[int] = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in tied:
            continue
        if id(parameter) in seen:
            owner, _, last = name.rpartition(".")
            own = torch.nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(model.get_submodule(owner), last, own)
        seen.add(id(parameter))


def _shapes(directory: Path) -> dict[str, list[int]] | None:
    """Shapes of the tensors in the files that transformers would load, by name; None if they have names of their own."""
    from safetensors import safe_open

    files = [directory / SINGLE]
    if not files[0].is_file():
        try:
            listed = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        files = [directory / name for name in sorted(set(listed))]
    found: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, "np") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (it is no mapping)
    return found


def _settings(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_of(directory: Path, trust_remote_code: bool) -> tuple[Any, Any] | None:
    """The class and the config of a causal language model; None if transformers cannot make one, or not of plain weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM
    try:
        config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            return None
        with torch.device("meta"):
            return type(make.from_config(config, trust_remote_code=trust_remote_code)), config
    except Exception:  # of whatever kind the class raises: what cannot be made is refused where it is loaded
        return None
