"""A model's tokenizer is the one of its tokenizer.json, wherever the files lie and whatever class they name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.common.errors import UserError
from pipeline.sources.tokenizer import absent_tokens, encode, for_engine, load_tokenizer

Save = Callable[..., Any]
TEXTS = ["Please work out 24+7.", " two  spaces\n", "The answer is 31.\tNow", "été ☃"]
BASE = Path(__file__).parents[3] / "data" / "base"


@pytest.mark.parametrize("place", ["checkpoint/c0ffee", "deepseek-ai/deepseek-coder-small"])
def test_the_ids_are_those_of_the_file_wherever_it_lies(
    save_tokenizer: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """transformers rebuilds it as a Llama tokenizer, which loses every space, unless the path is a certain hub name."""
    monkeypatch.chdir(tmp_path)
    described = save_tokenizer(Path(place), "bytes", tokenizer_class="LlamaTokenizerFast", pad_token="</s>")
    found = load_tokenizer(Path(place), trust_remote_code=False)
    ids = [described.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert encode(found, TEXTS, special=False) == ids
    assert [found.decode(one) for one in ids] == TEXTS
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<s>", "</s>", "</s>")


def test_what_vllm_loads_gives_the_same_ids(save_tokenizer: Save, tmp_path: Path) -> None:
    template = "{{ messages[0]['content'] }}"
    described = save_tokenizer(tmp_path / "model", "bytes", tokenizer_class="LlamaTokenizerFast", chat_template=template)
    (tmp_path / "scratch").mkdir()
    place = for_engine(tmp_path / "model", tmp_path / "scratch", trust_remote_code=False)
    given = AutoTokenizer.from_pretrained(place)
    assert [given(text)["input_ids"] for text in TEXTS] == [described.encode(text).ids for text in TEXTS]
    assert (given.eos_token, given.chat_template) == ("</s>", template)


def test_a_tokenizer_that_is_its_files_is_left_as_it_is(tmp_path: Path) -> None:
    assert for_engine(BASE, tmp_path, trust_remote_code=False) == BASE
    assert type(load_tokenizer(BASE, trust_remote_code=False)).__name__ == "Qwen2Tokenizer"


def test_what_the_settings_leave_open_is_as_the_class_has_it(save_tokenizer: Save, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "bytes")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}), encoding="utf-8")
    found = load_tokenizer(tmp_path, trust_remote_code=False)
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")


def test_special_tokens_that_the_file_does_not_have_are_told(save_tokenizer: Save, tmp_path: Path) -> None:
    described = save_tokenizer(
        tmp_path, "bytes", eos_token="<|end|>", pad_token={"__type": "AddedToken", "content": "[PAD]"}, unk_token=None
    )
    assert absent_tokens(tmp_path) == {"eos_token": "<|end|>", "pad_token": "[PAD]"}
    assert absent_tokens(BASE) == {}
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == described.get_vocab_size()


def test_many_threads_can_load_at_once(save_tokenizer: Save, tmp_path: Path) -> None:
    """The first import of transformers, which only one thread can do at a time."""
    save_tokenizer(tmp_path, "spaces", tokenizer_class="LlamaTokenizerFast")
    program = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path\n"
        "from pipeline.sources.tokenizer import load_tokenizer\n"
        "load = lambda _: load_tokenizer(Path(sys.argv[1]), trust_remote_code=False).eos_token\n"
        "print(set(ThreadPoolExecutor(8).map(load, range(8))))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("{'</s>'}\n", 0), done.stderr


def test_a_tokenizer_that_cannot_be_read_is_named(save_tokenizer: Save, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "bytes")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read: "):
        load_tokenizer(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize("kind", ["bytes", "spaces"])
def test_a_text_begins_once(save_tokenizer: Save, tmp_path: Path, kind: str) -> None:
    """A hand-written template may begin with the token that the tokenizer adds; a text that has it twice keeps both."""
    save_tokenizer(tmp_path, kind, tokenizer_class="LlamaTokenizerFast")
    found = load_tokenizer(tmp_path, trust_remote_code=False)
    plain, begun, twice = encode(found, ["The answer", "<s>The answer", "<s><s>The answer"], special=True)
    assert plain[0] == begun[0] == 0 and plain.count(0) == begun.count(0) == 1
    assert twice[:2] == [0, 0] and twice.count(0) == 2
    assert encode(found, ["<s>The answer"], special=False)[0].count(0) == 1
    assert encode(found, [], special=True) == []
