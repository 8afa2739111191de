"""What every room uses: no network, Prefect's files in a temporary place, a small config and finished artifacts by hand."""

from __future__ import annotations

import copy
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.run import RunConfig
from pipeline.store import Artifact, Request, Store
from pipeline.store.work import Work

SETTINGS: dict[str, Any] = {
    "name": "small",
    "model": {"path": "model"},
    "data": {"train": {"path": "train.jsonl"}, "heldout": {"path": "heldout.jsonl"}},
    "reward": {"components": [{"grader": "exact_match"}]},
}

WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
TOKENIZER = {"version": "1.0", "added_tokens": [], "model": WORDS}
MODEL: dict[str, bytes | None] = {
    "config.json": b'{"architectures": ["Qwen2ForCausalLM"]}',
    "model.safetensors": (2).to_bytes(8, "little") + b"{}",
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--needed", action="store_true", help="a package that a test needs and that is missing is a failure")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `needs` are skipped where a package is missing: .venv has none of these, .venv-peers has all of them."""
    packages = [package for mark in item.iter_markers("needs") for package in mark.args]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        tell = pytest.fail if item.config.getoption("--needed") else pytest.skip
        tell(f"not installed: {', '.join(missing)}; `make test-peers` runs this")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("prefect")
    variables = {
        "PREFECT_HOME": str(home),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "ROLLBOOK_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A tab of Chromium, as docs/browser.py opens it; tests that use it are skipped where no Chromium is."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
    try:
        import browser as chromium
    finally:
        sys.path.pop(0)
    if chromium.chromium() is None:
        pytest.skip("no Chromium on this machine")
    with chromium.Browser() as tab:
        yield tab


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """settings({"train.epochs": 2}): the least that a run needs, with changes by dotted key."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        tree: dict[str, Any] = copy.deepcopy(SETTINGS)
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return tree

    return make


@pytest.fixture
def make_config(settings: Callable[..., dict[str, Any]]) -> Callable[..., RunConfig]:
    """make_config({"train.epochs": 2}): `settings` as a RunConfig."""
    return lambda changes=None: RunConfig.model_validate(settings(changes))


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """write_model(directory, **{"config.json": b"{"}): the least that is taken for a model, with changed files (None: absent)."""

    def write(directory: Path, **files: bytes | None) -> Path:
        directory.mkdir(parents=True)
        for name, data in (MODEL | files).items():
            if data is not None:
                (directory / name).write_bytes(data)
        return directory

    return write


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., Any]:
    """save_tokenizer(directory, "spaces", tokenizer_class="LlamaTokenizerFast"): a small tokenizer.json with settings beside it.

    bytes: byte-level, as GPT-2's. spaces: words carry the space before them and texts lose their first one, as Llama's.
    Both put <s> before a text. Returns it as the tokenizers library has it.
    """
    import tokenizers as library

    def save(directory: Path, kind: str, **settings: Any) -> Any:
        made = library.Tokenizer(library.models.BPE(byte_fallback=kind == "spaces"))
        alphabet: list[str] = []
        if kind == "bytes":
            made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = library.decoders.ByteLevel()
            alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        else:
            made.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="first")
            parts = [library.decoders.Replace("▁", " "), library.decoders.Fuse(), library.decoders.Strip(" ", 1, 0)]
            made.decoder = library.decoders.Sequence(parts)
        trainer = library.trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(["Please work out 24+7. The answer is 31. Stop here, now."] * 20, trainer)
        made.post_processor = library.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        directory.mkdir(parents=True, exist_ok=True)
        made.save(str(directory / "tokenizer.json"))
        beside = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
        (directory / "tokenizer_config.json").write_text(json.dumps(beside), encoding="utf-8")
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": made.get_vocab_size()}
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return made

    return save


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make_artifact(store: Store) -> Callable[..., Artifact]:
    """make_artifact("shaped", name="a"): a finished artifact with that recipe and summary, and one file, in `store`."""

    def make(kind: Any = "shaped", **recipe: Any) -> Artifact:
        with store.work(Request(kind, "test/1", recipe)) as work:
            if not isinstance(work, Work):
                return work
            (work.path / "file.txt").write_text(f"{kind} {recipe}", encoding="utf-8")
            return work.finish({"iteration": 0, **{key: value for key, value in recipe.items() if not isinstance(value, str)}})

    return make


class ObjectStorage:
    """A local S3 server (moto) that can be made slow, and to fail."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                pass

        self._app = DomainDispatcherApplication(create_backend_app)
        self._guard = threading.Lock()
        self.fault: Callable[[str, str], float | None] = lambda method, path: 0.0
        """Called with every request: seconds to wait before it is answered, or None to break the connection."""
        self.requests: list[tuple[str, str]] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Any:
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        self.requests.append((method, path))
        delay = self.fault(method, path)
        if delay is None:
            environment["werkzeug.socket"].shutdown(2)
            start_response("500 nobody will see this", [])
            return []
        time.sleep(delay)
        size, body = environment.get("CONTENT_LENGTH"), environment["wsgi.input"]
        if size or environment.get("wsgi.input_terminated"):  # all of it, before anybody waits for the guard
            environment["wsgi.input"] = io.BytesIO(body.read(int(size)) if size else body.read())
        with self._guard:  # moto looks at a condition and then writes: only one at a time makes that one step, as it is on S3
            return list(self._app(environment, start_response))

    def stop(self) -> None:
        self._server.shutdown()


@dataclass
class BucketStore:
    """An empty store in a bucket of its own."""

    url: str
    server: ObjectStorage
    client: Any
    """boto3's."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a process needs in order to reach it."""

    def objects(self) -> list[str]:
        """Keys of all objects, from the store's root on."""
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix + "/") for entry in found]


@pytest.fixture(scope="session")
def object_storage() -> Iterator[ObjectStorage]:
    server = ObjectStorage()
    yield server
    server.stop()


@pytest.fixture
def bucket(object_storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketStore]:
    """A store in a bucket; processes started by the test reach it too."""
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": object_storage.endpoint,
        "AWS_ACCESS_KEY_ID": "test-key-id",
        "AWS_SECRET_ACCESS_KEY": "test-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ROLLBOOK_CACHE": str(tmp_path / "cache"),
        "ROLLBOOK_LEASE_SECONDS": "2",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.store.bucket._clients", {})  # a client's allowance of retries is not refilled by time
    client = boto3.session.Session().client("s3")
    name = f"rollbook-{abs(hash(str(tmp_path))):x}"
    client.create_bucket(Bucket=name)
    object_storage.requests.clear()
    yield BucketStore(f"s3://{name}/some/prefix", object_storage, client, environment)
    object_storage.fault = lambda method, path: 0.0
