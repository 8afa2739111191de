"""The base model: which directories are one, and how it comes into the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import IntegrityError, UserError
from pipeline.config.data import ModelConfig
from pipeline.sources.models import has_chat_template, hashes_of, import_model, locate, model_files, original_of
from pipeline.sources.order import import_request, links
from pipeline.store import Artifact, Store

Model = Callable[..., Path]


def weights(*tensors: str) -> bytes:
    """A safetensors file of one-byte tensors."""
    header = json.dumps({name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(tensors)})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(len(tensors))


@pytest.fixture
def model(tmp_path: Path, write_model: Model) -> Model:
    """model(name, **files): a directory that looks like a Hugging Face model; a file given as None is left out."""
    return lambda name="model", **files: write_model(tmp_path / name, **files)


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
        ({"config.json": b"[" * 5000}, r"config\.json: not valid JSON: "),
        (
            {"config.json": b'{"auto_map": {"AutoModel": "x.Y"}}'},
            r"config\.json: this model needs Python code that ships with it",
        ),
        ({"model.safetensors": b"weights"}, r"model\.safetensors: not whole: .*header too small\. Copy or download it again$"),
        ({"model.safetensors": weights("a")[:-1]}, r"model\.safetensors: not whole: .*not fully covered"),
        ({"model.safetensors": (1 << 40).to_bytes(8, "little")}, r"model\.safetensors: not whole: .*header too large"),
        (
            {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"},
            r"not whole: .*: it is a Git LFS pointer, `git lfs pull` fetches the file$",
        ),
        ({"model.safetensors.index.json": b"{}"}, r"index\.json: has no weight_map that names the weights' files"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model.safetensors", "b": "../../b.safetensors"}}'},
            r"index\.json: names \.\./\.\./b\.safetensors, which is not in .*model$",
        ),
        ({"tokenizer.json": None}, r"model: no tokenizer \(such as tokenizer\.json\)"),
        ({"tokenizer_config.json": b"{"}, r"tokenizer_config\.json: not valid JSON: "),
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
    with pytest.raises(
        UserError, match=rf"^model\.path: no directory {path}\. Give a model directory, a GGUF file, or a hub name"
    ):
        locate(ModelConfig(path=path))


def test_a_model_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"model\.path: no directory .*model\.safetensors"):
        locate(ModelConfig(path=str(tmp_path / "model.safetensors")))


def imported(store: Store, directory: Path, *, link: bool | None = None) -> Artifact:
    place = locate(ModelConfig(path=str(directory)))
    files = model_files(place)
    original = original_of(place, hashes_of(files))
    return import_model(store, import_request(hashes_of(files), original), files, str(directory), original, link=link)


@pytest.mark.parametrize(("link", "names"), [(True, 2), (False, 1)])
def test_weights_may_be_the_same_file_in_the_store_and_nothing_else_is(
    link: bool, names: int, store: Store, model: Model
) -> None:
    directory = model()
    artifact = imported(store, directory, link=link)
    artifact.verify()
    assert (directory / "model.safetensors").stat().st_nlink == names
    assert (directory / "config.json").stat().st_nlink == 1
    (directory / "model.safetensors").unlink()
    artifact.verify()


def test_what_nobody_changes_in_place_is_linked_unless_told_otherwise(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "3f9c"
    found = {wanted: [links(wanted, snapshot, None), links(wanted, tmp_path, None)] for wanted in ("auto", "always", "never")}
    assert found == {"auto": [True, None], "always": [True, True], "never": [False, False]}
    assert links("auto", tmp_path, kept=object()) is True


def test_a_model_is_copied_into_the_store(store: Store, model: Model) -> None:
    directory = model(**{"pytorch_model.bin": b"pickle", "model.safetensors": weights("one", "two")})
    artifact = imported(store, directory)
    assert artifact.kind == "checkpoint"
    assert artifact.summary == {"iteration": 0}
    assert sorted(path.name for path in artifact.path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (artifact.path / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert artifact.manifest.provenance.notes == {"imported_from": str(directory)}
    artifact.verify()


def test_the_same_files_elsewhere_are_the_same_model(store: Store, model: Model) -> None:
    one = imported(store, model("one"))
    assert imported(store, model("two")).path == one.path
    assert imported(store, model("three", **{"model.safetensors": weights("other")})).id != one.id


def test_a_checkpoint_of_another_run_is_a_model_and_the_parent_of_its_copy(tmp_path: Path, model: Model) -> None:
    original = imported(Store(tmp_path / "first"), model(**{"model.safetensors": weights("one")}))
    assert "manifest.json" not in model_files(original.path)
    copy = imported(Store(tmp_path / "second"), original.path)
    copy.verify()
    assert [(parent.role, parent.kind, parent.id) for parent in copy.manifest.content.parents] == [
        ("original", "checkpoint", original.id)
    ]
    assert copy.manifest.provenance.notes == {"imported_from": str(original.path), "original": str(original.path)}
    assert copy.summary == {"iteration": 0}
    assert imported(Store(tmp_path / "first"), original.path).id == copy.id  # also beside its original


def test_a_checkpoint_in_a_bucket_is_a_model(bucket: Any, tmp_path: Path, model: Model) -> None:
    original = imported(Store(bucket.url), model())
    place = locate(ModelConfig(path=original.url))
    files = model_files(place)
    found = original_of(place, hashes_of(files))
    assert (sorted(files), found and found.id) == (["config.json", "model.safetensors", "tokenizer.json"], original.id)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("tokenizer.json", b"[]", r"tokenizer\.json: differs from the manifest\. Restore it from a copy"),
        ("vocab.json", b"{}", r"vocab\.json: is not listed\. "),
        ("chat_template.jinja", None, r"chat_template\.jinja: is not there\. "),
    ],
)
def test_a_damaged_checkpoint_is_not_copied(tmp_path: Path, model: Model, name: str, data: bytes | None, said: str) -> None:
    original = imported(Store(tmp_path / "first"), model(**{"chat_template.jinja": b"{{ messages }}"}))
    if data is None:
        (original.path / name).unlink()
    else:
        (original.path / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=said):
        imported(Store(tmp_path / "second"), original.path)


def test_a_manifest_that_is_not_ours_is_left_where_it_is(store: Store, model: Model) -> None:
    artifact = imported(store, model(**{"manifest.json": b'{"format": "another/3"}'}))
    artifact.verify()
    assert artifact.manifest.content.parents == ()


def test_of_a_run_the_best_checkpoint_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"best": {"path": "artifacts/checkpoint/c0ffee"}}', encoding="utf-8")
    with pytest.raises(UserError, match=rf"It is a run; its best checkpoint is {tmp_path}/artifacts/checkpoint/c0ffee$"):
        model_files(tmp_path)


def test_a_link_to_a_file_elsewhere_does_not_come_into_the_store(model: Model, tmp_path: Path) -> None:
    directory = model()
    (tmp_path / "secret").write_text("a key", encoding="utf-8")
    (directory / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"vocab\.txt: a link to .*/secret, outside the model\. Put the file itself there"):
        model_files(directory)


def test_a_snapshot_of_the_hub_is_made_of_links(model: Model, tmp_path: Path) -> None:
    blobs = model("models--owner--name/blobs")
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert sorted(model_files(snapshot)) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({}, False),
        ({"tokenizer_config.json": b"{}"}, False),
        ({"tokenizer_config.json": b'{"chat_template": null}'}, False),
        ({"tokenizer_config.json": b'{"chat_template": "{{ messages }}"}'}, True),
        ({"chat_template.jinja": b"{{ messages }}"}, True),
    ],
    ids=str,
)
def test_a_chat_template_is_seen_in_the_files(model: Model, files: dict[str, bytes], has: bool) -> None:
    assert has_chat_template(model_files(model(**files))) is has
