"""A tokenizer that is remembered gives what transformers gives, and no other one is taken for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources import recalled_tokenizer
from pipeline.sources.recalled_tokenizer import NAMES, RecalledTokenizer, tokenizer_and_vocabulary
from pipeline.sources.tokenizer import encode, encode_flat, load_tokenizer

Save = Callable[..., Any]
BASE = Path(__file__).parents[3] / "data" / "base"
TEXTS = ["Q:24+7=", " two  spaces\n", "<eos>A:31<eos>", "<s>été ☃", "", "\n\n1,000", "<s>", "e\u0301"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROLLBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["demo", "bytes"])
def test_what_is_remembered_is_what_transformers_says(kind: str, save_tokenizer: Save, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if kind == "demo":
        shutil.copytree(BASE, model)
    else:
        save_tokenizer(model, "bytes", tokenizer_class="LlamaTokenizerFast", pad_token="</s>", chat_template="{{ messages }}")
        (model / "config.json").write_text('{"model_type": "llama", "vocab_size": 40000}', encoding="utf-8")
    first, vocabulary = tokenizer_and_vocabulary(model, trust_remote_code=False)
    again, same = tokenizer_and_vocabulary(model, trust_remote_code=False)
    loaded = load_tokenizer(model, trust_remote_code=False)
    assert not isinstance(first, RecalledTokenizer) and isinstance(again, RecalledTokenizer)
    assert vocabulary == same == (40000 if kind == "bytes" else vocabulary)
    for special in (True, False):
        assert encode(again, TEXTS, special=special) == encode(loaded, TEXTS, special=special)
    flat, lengths = encode_flat(again, TEXTS)
    assert [*flat] == [token for ids in encode(loaded, TEXTS, special=False) for token in ids] and len(lengths) == len(TEXTS)
    assert {name: getattr(again, name) for name in NAMES} == {name: getattr(loaded, name) for name in NAMES}
    ids = encode(loaded, TEXTS, special=False)
    assert [again.decode(one) for one in ids] == [loaded.decode(one) for one in ids]


def test_a_file_that_changed_is_asked_about_again(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    tokenizer_and_vocabulary(tmp_path / "model", trust_remote_code=False)
    settings = tmp_path / "model" / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(said | {"eos_token": "<pad>"}), encoding="utf-8")
    found, _ = tokenizer_and_vocabulary(tmp_path / "model", trust_remote_code=False)
    assert not isinstance(found, RecalledTokenizer) and found.eos_token == "<pad>"


def test_a_tokenizer_that_is_more_than_its_file_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    """A token that the settings add is one that the tokenizers library does not find in texts."""
    shutil.copytree(BASE, tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(said | {"additional_special_tokens": ["<tool>"], "pad_token": "<fill>"}), encoding="utf-8")
    for _ in range(2):
        found, _ = tokenizer_and_vocabulary(tmp_path / "model", trust_remote_code=False)
        assert not isinstance(found, RecalledTokenizer)
    assert not list(cache.rglob("*.json"))


def test_a_record_that_is_damaged_is_made_anew(cache: Path) -> None:
    tokenizer_and_vocabulary(BASE, trust_remote_code=False)
    (record,) = cache.rglob("tokenizers/*.json")
    for damage in ("", "[]", '{"names": {}, "vocabulary": 3}'):
        record.write_text(damage, encoding="utf-8")
        assert not isinstance(tokenizer_and_vocabulary(BASE, trust_remote_code=False)[0], RecalledTokenizer)
        assert isinstance(tokenizer_and_vocabulary(BASE, trust_remote_code=False)[0], RecalledTokenizer)


def test_an_import_of_texts_does_without_transformers_and_pandas(tmp_path: Path) -> None:
    row = {"prompt": "Q:1+1=", "completion": "A:2", "reward": 1.0, "group_id": "g", "finish_reason": "stop"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    tokenizer_and_vocabulary(BASE, trust_remote_code=False)
    code = (
        "import sys\nfrom flows.cli import app\n"
        f"app(['import', {str(tmp_path / 'rows.jsonl')!r}, '-s', {str(tmp_path / 'store')!r}, '-m', {str(BASE)!r}], "
        "standalone_mode=False)\n"
        "print('loaded', sorted({'transformers', 'pandas', 'torch'} & {name for name, found in sys.modules.items() if found}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert "loaded []" in done.stdout


def test_code_that_comes_with_a_model_is_asked_each_time(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked: list[bool] = []
    load = recalled_tokenizer.load_tokenizer

    def counted(directory: Path, *, trust_remote_code: bool) -> Any:
        asked.append(trust_remote_code)
        return load(directory, trust_remote_code=trust_remote_code)

    monkeypatch.setattr(recalled_tokenizer, "load_tokenizer", counted)
    for _ in range(2):
        tokenizer_and_vocabulary(BASE, trust_remote_code=True)
    assert asked == [True, True] and not list(cache.rglob("*.json"))
