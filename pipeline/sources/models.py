"""The base model: found, checked and copied into the store as the checkpoint of iteration 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.common.device import resolve_dtype
from pipeline.common.errors import IntegrityError, UserError
from pipeline.common.near import did_you_mean
from pipeline.config.data import ModelConfig
from pipeline.run.process import Event, Reporter
from pipeline.sources.gguf_files import SUFFIX, converted, is_gguf
from pipeline.sources.readers import LFS
from pipeline.sources.weights import refuse_missing_weights
from pipeline.store import Artifact, Request, Store
from pipeline.store.files import whole_file
from pipeline.store.layout import MANIFEST
from pipeline.store.place import REMEDY
from pipeline.store.remembered import clone, hard_link, known_sha256
from pipeline.store.store import load_artifact, verified
from pipeline.store.work import Work
from schemas.manifest import ORIGINAL

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".py")
"""What is copied. Pickled weights (.bin, .pt) are never opened."""
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "sentencepiece.bpe.model",
)
"""Any of these is a tokenizer, and so is what ends in .tiktoken."""
INDEX = "model.safetensors.index.json"
LONGEST_JSON = 256 << 20
"""Bytes of a JSON file of a model."""


def locate(config: ModelConfig) -> Path:
    """The directory of a model: a local one, a checkpoint's in a bucket, a hub snapshot (downloaded if it is not cached), or
    what a GGUF file is made into.

    Raises:
        UserError: neither a directory nor a hub name that can be reached, or a GGUF file that cannot be read.
        IntegrityError: a checkpoint in a bucket is damaged.
    """
    path = Path(config.path)
    if path.is_dir():
        return path
    if config.path.startswith("s3://"):
        return verified(config.path).path
    if is_gguf(path):
        return converted(path, resolve_dtype(config.dtype))
    if path.is_absolute() or config.path.startswith((".", "~")) or config.path.count("/") != 1:
        near = did_you_mean(path) or ". Give a model directory, a GGUF file, or a hub name such as owner/name"
        raise UserError(f"model.path: no directory {config.path}{near}")
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model.path: {config.path} is no local directory and could not be had from the hub: {_first_line(error)}"
            f"{did_you_mean(path)}"
        ) from None


def model_files(directory: Path, *, trust_remote_code: bool = False) -> dict[str, Path]:
    """Files of a model directory that belong to it, by name. An artifact's manifest does not: it is of the artifact alone.

    Raises:
        UserError: no config.json, tokenizer or safetensors weights, one of them is broken or lies elsewhere, or the model
            needs code of its own and is not trusted with it.
    """
    found = {
        path.name: path
        for path in sorted(directory.iterdir())
        if path.suffix in SUFFIXES and path.name != MANIFEST and path.is_file() and (path.suffix != ".py" or trust_remote_code)
    }
    if "config.json" not in found:
        raise UserError(f"{directory}: not a Hugging Face model directory (it has no config.json){_run_hint(directory)}")
    for path in found.values():
        _refuse_link_elsewhere(path)
    settings = _json_object(found["config.json"])
    if settings.get("auto_map") and not trust_remote_code:
        _refuse_own_code(found["config.json"], settings)
    _check_weights(directory, found)
    if not any(name in TOKENIZERS or name.endswith(".tiktoken") for name in found):
        raise UserError(f"{directory}: no tokenizer (such as tokenizer.json). Save it there: `tokenizer.save_pretrained(path)`")
    if "tokenizer_config.json" in found:
        _json_object(found["tokenizer_config.json"])
    return found


def _run_hint(directory: Path) -> str:
    """What to name instead: of a run the checkpoint that its record calls the best, or the GGUF file that lies there."""
    if files := sorted(directory.glob(f"*{SUFFIX}")):
        return f". Name the GGUF file: {files[0]}"
    try:
        best = json.loads((directory / "run.json").read_text(encoding="utf-8"))["best"]["path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f". It is a run; its best checkpoint is {best if best.startswith('s3://') else directory / best}"


def has_chat_template(files: dict[str, Path]) -> bool:
    """Whether a model's tokenizer has a chat template; seen in its files, without loading it."""
    if "chat_template.jinja" in files:
        return True
    return "tokenizer_config.json" in files and bool(_json_object(files["tokenizer_config.json"]).get("chat_template"))


def chat_template_bytes(directory: Path) -> int:
    """Size of a model's chat templates; seen in its files, without loading them."""
    if (own := directory / "chat_template.jinja").is_file():
        return own.stat().st_size
    settings = directory / "tokenizer_config.json"
    return len(json.dumps(_json_object(settings).get("chat_template"))) if settings.is_file() else 0


def chat_template_text(directory: Path) -> str:
    """A model's chat templates; read from its files, without loading it. Empty where there is none."""
    if (own := directory / "chat_template.jinja").is_file():
        return own.read_text(encoding="utf-8")
    settings = directory / "tokenizer_config.json"
    return str(_json_object(settings).get("chat_template") or "") if settings.is_file() else ""


def vocabulary(config: Path) -> int | None:
    """Entries of a model's logits, if its config.json says so."""
    settings = _json_object(config)
    text = settings.get("text_config", settings)
    found = text.get("vocab_size") if isinstance(text, dict) else None
    return found if isinstance(found, int) else None


def positions(config: Path) -> int | None:
    """Tokens that a model's prompt and completion may have together, if its config.json says so."""
    settings = _json_object(config)
    text = settings.get("text_config", settings)
    found = [text.get(name) for name in ("max_position_embeddings", "n_positions")] if isinstance(text, dict) else []
    return next((value for value in found if isinstance(value, int)), None)


def _refuse_own_code(path: Path, settings: dict[str, Any]) -> None:
    """Some models ship code beside weights that transformers can run without it; others cannot do without.

    Raises:
        UserError: the model is of no kind that transformers knows.
    """
    if kind := settings.get("model_type"):
        from transformers import CONFIG_MAPPING

        if kind in CONFIG_MAPPING:
            return
    raise UserError(
        f"{path}: this model needs Python code that ships with it. Read that code; if you trust it, set "
        "model.trust_remote_code: true"
    )


def _refuse_link_elsewhere(path: Path) -> None:
    """A hub snapshot is made of links into its repository's blobs. Any other link could put a file of the user's in the store.

    Raises:
        UserError: the file is a link that leaves its model.
    """
    here = path.parent.resolve()
    repository = here.parent.parent if is_snapshot(here) else here
    if not path.resolve().is_relative_to(repository):
        raise UserError(f"{path}: a link to {path.resolve()}, outside the model. Put the file itself there")


def is_snapshot(directory: Path) -> bool:
    """Whether a directory is a hub snapshot, whose files are named after their content and never change."""
    here = directory.resolve()
    return here.parent.name == "snapshots" and here.parent.parent.name.startswith("models--")


def _json_object(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file does not hold a JSON object.
    """
    if path.stat().st_size > LONGEST_JSON:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, expected a JSON file of at most {LONGEST_JSON:,}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _check_weights(directory: Path, found: dict[str, Path]) -> None:
    """Read the headers of the weights, and that all files of a divided model are there.

    Raises:
        UserError: names the file that is missing or broken.
    """
    weights = [path for name, path in found.items() if name.endswith(".safetensors")]
    if not weights:
        raise UserError(
            f"{directory}: no .safetensors weights. Pickled weights are not read; convert them with "
            "`model.save_pretrained(path, safe_serialization=True)`"
        )
    for path in weights:
        check_weights_file(path)
    if INDEX in found:
        listed = _json_object(found[INDEX]).get("weight_map")
        if not isinstance(listed, dict):
            raise UserError(f"{found[INDEX]}: has no weight_map that names the weights' files")
        if missing := sorted({str(name) for name in listed.values()} - set(found)):
            raise UserError(f"{found[INDEX]}: names {missing[0]}, which is not in {directory}")


def check_weights_file(path: Path) -> None:
    """Read the header of a safetensors file: that it is one, and that the file holds all that it names.

    Raises:
        UserError: it is not, or does not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not whole: {error}. Copy or download it again{_pointer_hint(path)}") from None


def _pointer_hint(path: Path) -> str:
    with path.open("rb") as file:
        return ": it is a Git LFS pointer, `git lfs pull` fetches the file" if file.read(len(LFS)) == LFS else ""


def hashes_of(files: dict[str, Path]) -> dict[str, str]:
    return {name: known_sha256(path) for name, path in files.items()}


def original_of(directory: Path, hashes: dict[str, str]) -> Artifact | None:
    """The checkpoint artifact that a model directory is; None of any other directory.

    Args:
        hashes: sha256 of the model's files, by name.

    Raises:
        UserError: it is an artifact of another kind.
        IntegrityError: its files are not those that its manifest lists.
    """
    if not _is_artifact(directory):
        return None
    artifact = load_artifact(directory)
    if artifact.kind != "checkpoint":
        raise UserError(f"{directory}: a {artifact.kind} artifact; name a checkpoint")
    listed = {file.path: file.sha256 for file in artifact.files if Path(file.path).suffix in SUFFIXES and "/" not in file.path}
    code = {name for name in listed.keys() - hashes.keys() if name.endswith(".py")}  # of a model that is not trusted with it
    for name in sorted((listed.keys() | hashes.keys()) - code):
        if listed.get(name) != hashes.get(name):
            what = "is not there" if name not in hashes else "differs from the manifest" if name in listed else "is not listed"
            raise IntegrityError(f"{directory}/{name}: {what}. {REMEDY}")
    return artifact


def _is_artifact(directory: Path) -> bool:
    """Whether a directory holds a manifest of ours; some models come with a file of that name."""
    try:
        return str(json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["format"]).startswith("rollbook/")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def import_model(
    store: Store, request: Request, files: dict[str, Path], origin: str, original: Artifact | None, *, link: bool | None = None
) -> Artifact:
    """Put a model's files into the store, if they hold every weight that the model needs.

    Args:
        link: whether weights may be hard links to those files. None: they share blocks with them, or are copied.
        origin: where they came from, as the user wrote it; recorded under provenance.
        original: the checkpoint artifact that they are of, which the request has as a parent. Its place is recorded under
            provenance, so that it is found in another store.

    Raises:
        UserError: a weight is missing; names it.
    """
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        code = any(name.endswith(".py") for name in files)  # there only if it is trusted
        refuse_missing_weights(files["config.json"].parent, trust_remote_code=code)
        shared = {name for name, path in files.items() if link is not False and _share(path.resolve(), work.path / name, link)}
        copied = {name: path for name, path in files.items() if name not in shared}
        work.require_space(sum(path.stat().st_size for path in copied.values()), "a copy of the model")
        for name, path in copied.items():
            with whole_file(work.path / name) as temporary:
                shutil.copyfile(path, temporary)
        place = {ORIGINAL: original.url if "://" in original.url else str(original.path.resolve())} if original else {}
        return work.finish({"iteration": 0}, notes={"imported_from": origin, **place})


def _share(source: Path, target: Path, link: bool | None) -> bool:
    """Have a weights file in the store without a second copy of its bytes. Whether that could be done."""
    if source.suffix != ".safetensors":
        return False
    target.unlink(missing_ok=True)
    return clone(source, target) or (link is True and hard_link(source, target))


def work(spec: Event, reporter: Reporter) -> Event:
    """Import the models of a spec.

    Args:
        spec: store, and jobs: a list of {request, files (paths by name), origin, original (path of an artifact, or null), made
            (a sentence on what they were made from, or null), link (as of `import_model`)}.

    Returns:
        {"artifacts": paths, in the order of the jobs}.
    """
    store, made = Store(spec["store"], reporter.note), []
    for job in spec["jobs"]:
        files = {name: Path(path) for name, path in job["files"].items()}
        original = load_artifact(job["original"]) if job["original"] else None
        if job["made"]:
            reporter.note(f"the model is a plain checkpoint {job['made']}")
        made.append(import_model(store, Request.from_json(job["request"]), files, job["origin"], original, link=job["link"]))
    return {"artifacts": [str(artifact.path) for artifact in made]}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
