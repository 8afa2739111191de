"""Real text: GSM8K questions with unicode, a chat template, a trained byte-level BPE, math-verify, two algorithms.

The model is random, so nearly every completion is cut at max_tokens and worth nothing; what is tested is that every row
and every token survives the way. Without ../shared/data/gsm8k beside the checkout only the rows written here are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from pipeline.config.load import load_config
from pipeline.run.record import load_run
from pipeline.run.state import Run
from pipeline.store import read_table
from schemas import Prompts, Rollouts, Shaped

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT.parent / "shared/data/gsm8k"
SYSTEM = "Think step by step – then write the answer after ####. 一步一步地想。"
MAX_TOKENS = 24
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STORIES = (
    ("Zoë buys {a} crêpes at {b} € each. How many euros does she pay?", "{a}*{b}", "She pays {w} €."),
    ("Đặng has {a} red and {b} blue marbles. How many has he got?", "{a}+{b}", "{w} marbles – that’s all of them."),
    ("小明有{a}个苹果,又买了{b}个。他现在有多少个苹果?", "{a}+{b}", "他现在有 {w} 个。"),
    ("José ran {a} km a day for {b} days. How far is that in total?", "{a}*{b}", "In total {w} km 🏃."),
    ("The café “Ærø” sold {a} teas and {b} coffees. How many drinks?", "{a}+{b}", "{w} drinks ☕."),
    ("У Маши {a} рублей, у Пети на {b} больше. Сколько у Пети?", "{a}+{b}", "У Пети {w} рублей."),
    ("A naïve baker sells {a} trays of {b} rolls. How many rolls 🥐 are that?", "{a}*{b}", "That makes {w} rolls."),
    ("Ayşe's box weighs {a} kg; each of {b} boxes is the same. What do they weigh?", "{a}*{b}", "They weigh {w} kg."),
)
"""Question, sum and sentence of a worked solution."""


def own_rows() -> list[dict[str, str]]:
    """Four dozen rows in the form of GSM8K; two of the answers are in the thousands, with a comma."""
    rows = []
    for a, b in ((3, 4), (12, 5), (25, 8), (40, 11), (60, 9), (75, 32)):
        for question, formula, sentence in STORIES:
            formula = formula.format(a=a, b=b)
            value = eval(formula)
            solution = sentence.format(w=f"<<{formula}={value}>>{value}")
            rows.append({"question": question.format(a=a, b=b), "answer": f"{solution}\n#### {value:,}"})
    return rows


@pytest.fixture(scope="module", params=["own rows", "gsm8k"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and held-out rows as JSONL."""
    if request.param == "gsm8k":
        if not GSM8K.is_dir():
            pytest.skip("GSM8K is not beside this checkout (../shared/data/gsm8k/{train,test}.jsonl)")
        return GSM8K / "train.jsonl", GSM8K / "test.jsonl"
    directory = tmp_path_factory.mktemp("own")
    rows = [json.dumps(row, ensure_ascii=False) for row in own_rows()]
    for name, part in (("train", rows[:-8]), ("test", rows[-8:])):
        (directory / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    return directory / "train.jsonl", directory / "test.jsonl"


@pytest.fixture(scope="module")
def model(texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of 0.3 million parameters with a byte-level BPE trained on these texts."""
    import torch

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts[0].read_text(encoding="utf-8").splitlines()[:1000], trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=[SPECIAL[1]],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    path = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(
    served: Any,
    write_config: Callable[..., Path],
    texts: tuple[Path, Path],
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Generate, evaluate, shape and train on these texts; then train a second algorithm on the same rollouts."""
    directory = tmp_path_factory.mktemp("run")
    sources = {
        name: {"path": str(path), "answer_pattern": "#### (.+)$", "limit": limit}
        for name, path, limit in (("train", texts[0], 40), ("heldout", texts[1], 8))
    }
    config = write_config(
        directory / "gsm8k.yaml",
        name="gsm8k",
        store=str(directory / "store"),
        model={"path": str(model)},
        data={**sources, "chat": True, "system": SYSTEM, "template": "{question}"},
        generate={"prompts": 8, "samples": 4, "temperature": 1.0, "max_tokens": MAX_TOKENS, "shard_groups": 4},
        reward={
            "components": [
                {"grader": "math_verify"},
                {"grader": "regex", "name": "says_k", "weight": 0.5, "args": {"pattern": "k", "compare": False}},
            ]
        },
        evaluate={"samples": 1, "k": [1]},
    )
    for algorithm in ("rec-oneside-nois", "grpo"):
        settings = (f"train.algorithm={algorithm}", f"run_dir={directory / algorithm}")
        ended = served("train", config, *(part for setting in settings for part in ("--set", setting)))
        assert ended.status == 0, ended.err
        assert ("already there" in ended.err) == (algorithm == "grpo")
    return load_run(directory / "grpo")


@pytest.fixture(scope="module")
def rollouts(run: Run) -> pl.DataFrame:
    answers = run.iterations[0].answers
    assert answers and answers.rollouts
    return read_table(answers.rollouts, Rollouts)


@pytest.mark.slow
def test_prompts_are_the_chat_with_the_question_and_the_bare_answer(run: Run, texts: tuple[Path, Path]) -> None:
    assert run.train_prompts
    prompts = read_table(run.train_prompts, Prompts).to_dicts()
    rows = [json.loads(line) for line in texts[0].read_text(encoding="utf-8").splitlines()[:40]]
    assert [prompt["question"] for prompt in prompts] == [row["question"] for row in rows]
    for prompt, row in zip(prompts, rows, strict=True):
        user = f"<|im_start|>user\n{row['question']}<|im_end|>\n"
        assert prompt["prompt_text"] == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{user}<|im_start|>assistant\n"
        assert prompt["answer"] == row["answer"].split("#### ")[1]


@pytest.mark.slow
def test_every_row_is_there_with_a_status(rollouts: pl.DataFrame) -> None:
    assert rollouts.group_by("group_id").len()["len"].to_list() == [4] * 8
    assert rollouts["sample_index"].to_list() == [0, 1, 2, 3] * 8
    assert set(rollouts["status"]) <= {"ok", "truncated"}
    assert (rollouts["status"] == "truncated").mean() > 0.5
    lengths = rollouts["completion_token_ids"].list.len()
    assert (lengths.filter(rollouts["status"] == "truncated") == MAX_TOKENS).all()
    assert rollouts["error"].null_count() == len(rollouts)


@pytest.mark.slow
def test_token_ids_survive_the_way(rollouts: pl.DataFrame, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for row in rollouts.to_dicts():
        prompt = row["prompt_token_ids"]
        assert tokenizer(row["prompt_text"], add_special_tokens=False)["input_ids"] == prompt
        assert tokenizer.decode(prompt) == row["prompt_text"]
        assert (prompt.count(start), prompt.count(end)) == (3, 2)
        completion = row["completion_token_ids"]
        assert tokenizer.decode(completion, skip_special_tokens=True) == row["completion_text"]
        assert max(prompt + completion) < len(tokenizer)
        assert (completion[-1] == end) == (row["status"] == "ok")


@pytest.mark.slow
def test_the_reward_is_the_weighted_sum_of_its_components(rollouts: pl.DataFrame) -> None:
    correct, says_k = rollouts["reward_math_verify"], rollouts["reward_says_k"]
    assert set(correct) <= {0.0, 1.0}
    assert says_k.to_list() == [float("k" in text) for text in rollouts["completion_text"]]
    assert 0 < says_k.mean() < 1
    assert rollouts["reward"].to_list() == (correct + 0.5 * says_k).to_list()


@pytest.mark.slow
def test_two_algorithms_share_the_rollouts(run: Run) -> None:
    assert run.iterations[0].shaped and run.iterations[0].answers
    first, second = (
        load_run(run.config.directory.parent / algorithm).iterations[0].checkpoint for algorithm in ("rec-oneside-nois", "grpo")
    )
    assert first and second and first.id != second.id
    assert first.parent("rollouts").id == second.parent("rollouts").id == run.iterations[0].answers.rollouts.id
    shaped = read_table(run.iterations[0].shaped, Shaped)
    assert len(shaped) == 32
    assert shaped["advantage"].abs().max() > 0
    for checkpoint in (first, second):
        assert checkpoint.summary["logprob_difference_mean"] < 1e-4
        assert checkpoint.summary["completions"] == shaped["keep"].sum()


def test_the_config_for_gsm8k_is_sound() -> None:
    config = load_config(ROOT / "configs/gsm8k.yaml")
    assert (config.data.train.subset, config.data.train.split, config.data.heldout.split) == ("main", "train", "test")
    assert config.data.chat and config.data.system
    assert config.train.algorithm == "rec-oneside-nois"
    assert [component.grader for component in config.reward.components] == ["math_verify"]
