"""GGUF files become plain checkpoints: the same weights, the tokenizer that the file describes, and where they are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.common.errors import UserError
from pipeline.config.data import ModelConfig
from pipeline.config.load import load_config
from pipeline.prepare.check import check_config
from pipeline.run.answers import Local
from pipeline.run.order import only
from pipeline.run.processes import Processes
from pipeline.sources.gguf_files import described, made_from
from pipeline.sources.models import has_chat_template, locate, model_files
from pipeline.sources.order import import_order
from pipeline.sources.tokenizer import encode, load_tokenizer, of_file
from pipeline.store import Store

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
SPECIAL = ["<|end|>", "<|begin|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ Ġ", "a b"]
TOKENS = [*SPECIAL, *LETTERS, "ĠĠ", "ab"]
HEADS, KEY_HEADS = 4, 2
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLBOOK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def in_rope_order(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query's or key's weight as llama.cpp keeps them: the two halves of each head, one row of each in turn."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: Any, *, split: str = "smollm", without: str = "", coarse: tuple[str, ...] = ()) -> Path:
    """A GGUF file of a model.

    Args:
        split: its tokenizer.ggml.pre.
        without: a tensor that is left out.
        coarse: tensors that are kept as Q8_0.
    """
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
        weight = in_rope_order(weight, heads) if heads else weight
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if name == without:
            continue
        kind = gguf.GGMLQuantizationType.Q8_0 if name in coarse else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_come_out_as_they_were(model: Any, tmp_path: Path) -> None:
    place = locate(ModelConfig(path=str(write(tmp_path / "tiny.gguf", model, coarse=("blk.0.ffn_up.weight",)))))
    found = load_file(place / "model.safetensors")
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if name == "model.layers.0.mlp.up_proj.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            rounded = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))
            assert 0 < float((rounded - weight).abs().max()) < 1e-3
            weight = rounded
        assert torch.equal(found[name], weight), name
    made = made_from(place)
    assert made is not None and described(made) == "from tiny.gguf: 19 tensors of F32, 1 of Q8_0, all made float32"
    assert "quantization_config" not in json.loads((place / "config.json").read_text())


def test_it_is_made_once_for_each_number_format(model: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", model)
    first = locate(ModelConfig(path=str(path)))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert locate(ModelConfig(path=str(path))) == first and (first / "model.safetensors").stat().st_mtime_ns == written
    other = locate(ModelConfig(path=str(path), dtype="bfloat16"))
    assert {tensor.dtype for tensor in load_file(other / "model.safetensors").values()} == {torch.bfloat16}


def test_texts_are_cut_as_the_file_says(model: Any, tmp_path: Path) -> None:
    place = locate(ModelConfig(path=str(write(tmp_path / "tiny.gguf", model))))
    texts = ["ab  12", "<|begin|>a 7<|end|>", "ab\n\n3 b"]
    tokenizer, described_by = load_tokenizer(place, trust_remote_code=False), of_file(place / "tokenizer.json")
    assert encode(tokenizer, texts, special=True) == [described_by.encode(text).ids for text in texts]
    # llama.cpp's "smollm" cuts around every digit first: two spaces before a number are one token, as after no other word.
    assert described_by.encode("ab  12").tokens == ["ab", "ĠĠ", "1", "2"]
    assert described_by.encode("ab  b").tokens == ["ab", "Ġ", "Ġ", "b"]


def test_a_way_of_cutting_texts_that_is_not_known_is_said(model: Any, tmp_path: Path) -> None:
    made = made_from(locate(ModelConfig(path=str(write(tmp_path / "tiny.gguf", model, split="of-tomorrow")))))
    assert made is not None and "it cuts texts as 'of-tomorrow', which is not known here" in described(made)


def test_a_run_imports_it_and_its_checkpoint_says_where_it_is_from(model: Any, tmp_path: Path, settings: Any) -> None:
    path = write(tmp_path / "tiny.gguf", model)
    (tmp_path / "t.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "h.jsonl").write_text('{"question": "1+2", "answer": "3"}\n')
    changes = {"model.path": str(path), "data.train.path": str(tmp_path / "t.jsonl"), "data.chat": True}
    changes |= {"data.heldout.path": str(tmp_path / "h.jsonl"), "run_dir": str(tmp_path / "run"), "generate.max_tokens": 8}
    (tmp_path / "run.yaml").write_text(json.dumps(settings(changes)))
    config = load_config(str(tmp_path / "run.yaml"), ())
    lines = check_config(config)
    assert "weights    from tiny.gguf: 20 tensors of F32, all made float32" in lines
    base = only(Local(Store(config.store_url), Processes({}), tmp_path / "logs").answer(import_order(config)))
    assert has_chat_template(model_files(base.path)) and not (base.path / "made-from").exists()
    made = base.manifest.content.recipe["made_from"]
    assert made == {"sha256": made["sha256"], "dtype": "float32", "types": {"F32": 20}} and len(made["sha256"]) == 64
    assert base.manifest.provenance.notes["imported_from"] == str(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.gguf", b"version https://git-lfs.github.com/spec/v1\n", r"model\.gguf: it is a Git LFS pointer"),
        ("model.gguf", b"PK\x03\x04", r"model\.gguf: not a GGUF file"),
        ("model.gguf", b"GGUF\x03\x00\x00\x00", r"model\.gguf: not whole: "),
        ("model-00001-of-00002.gguf", b"GGUF\x03\x00\x00\x00", r"one of several parts of a model"),
    ],
)
def test_what_is_no_whole_gguf_file_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        locate(ModelConfig(path=str(tmp_path / name)))


def test_a_missing_weight_is_named(model: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", model, without="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"it holds no model\.layers\.1\.mlp\.up_proj\.weight, which LlamaForCausalLM needs"):
        locate(ModelConfig(path=str(path)))
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_directory_with_a_gguf_file_says_how_to_name_it(model: Any, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    path = write(tmp_path / "m" / "tiny.gguf", model)
    with pytest.raises(UserError, match=f"Name the GGUF file: {path}"):
        model_files(tmp_path / "m")
