"""The base model: which directories are one, and how it comes into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts import Artifact, Store
from pipeline.base_model import hashes_of, import_model, locate, model_files
from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.requests import import_request

Model = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """model(name, **more files): a directory that looks like a Hugging Face model; a file given as None is left out."""

    def make(name: str = "model", **files: bytes | None) -> Path:
        content = {"config.json": b'{"model_type": "qwen2"}', "model.safetensors": b"weights", "tokenizer.json": b"{}", **files}
        directory = tmp_path / name
        directory.mkdir()
        for file, data in content.items():
            if data is not None:
                (directory / file).write_bytes(data)
        return directory

    return make


def test_the_files_of_a_model_are_found_by_name(model: Model) -> None:
    directory = model(**{"chat_template.jinja": b"", "tokenizer.model": b"", "merges.txt": b"", "README.md": b"", "old.bin": b""})
    (directory / "checkpoint.json").mkdir()
    assert list(model_files(directory)) == [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]


def test_code_belongs_to_a_model_only_if_it_is_trusted(model: Model) -> None:
    directory = model(**{"modeling_own.py": b"print('loaded')"})
    assert "modeling_own.py" not in model_files(directory)
    assert "modeling_own.py" in model_files(directory, trust_remote_code=True)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": None}, r"model: not a Hugging Face model directory \(it has no config\.json\)"),
        ({"config.json": b"{'model_type'"}, r"config\.json: not valid JSON: "),
        ({"config.json": b""}, r"config\.json: not valid JSON: "),
        ({"config.json": b"\xff\xfe"}, r"config\.json: not valid JSON: "),
        ({"config.json": b"[]"}, r"config\.json: expected a JSON object, found list"),
        ({"model.safetensors": None}, r"model: no \.safetensors weights\. Pickled weights are not read; convert them with"),
        ({"model.safetensors": None, "pytorch_model.bin": b"\x80\x04"}, r"model: no \.safetensors weights\. Pickled weights"),
    ],
    ids=str,
)
def test_what_is_no_model_is_refused(model: Model, files: dict[str, bytes | None], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_files(model(**files))


@pytest.mark.parametrize("path", ["nowhere", "./nowhere", "/nowhere", "~/nowhere", "a/b/c"])
def test_a_model_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.path: no directory {path}\. Give a model directory, or a hub name"):
        locate(ModelConfig(path=path))


def test_a_model_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"model\.path: no directory .*model\.safetensors"):
        locate(ModelConfig(path=str(tmp_path / "model.safetensors")))


def imported(store: Store, directory: Path) -> Artifact:
    files = model_files(locate(ModelConfig(path=str(directory))))
    return import_model(store, import_request(hashes_of(files)), files, str(directory))


def test_a_model_is_copied_into_the_store(store: Store, model: Model) -> None:
    directory = model(**{"pytorch_model.bin": b"pickle"})
    artifact = imported(store, directory)
    assert artifact.kind == "checkpoint"
    assert artifact.summary == {"iteration": 0}
    assert sorted(path.name for path in artifact.path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (artifact.path / "model.safetensors").read_bytes() == b"weights"
    assert artifact.manifest.provenance.notes == {"imported_from": str(directory)}
    artifact.verify()


def test_the_same_files_elsewhere_are_the_same_model(store: Store, model: Model) -> None:
    one = imported(store, model("one"))
    assert imported(store, model("two")).path == one.path
    assert imported(store, model("three", **{"model.safetensors": b"other weights"})).id != one.id
