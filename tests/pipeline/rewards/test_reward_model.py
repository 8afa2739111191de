"""A reward model: real classifiers of random weights, whose scores are those that transformers computes one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent
from pipeline.rewards.graders.reward_model import reward_model
from pipeline.rewards.items import RewardItem
from pipeline.rewards.registry import recipe_of, resolve

BASE = Path(__file__).resolve().parents[3] / "data" / "base"


def items(*completions: str, group: str = "p0@01234567") -> list[RewardItem]:
    prompt = {"prompt_id": "p0", "question": "1+2", "prompt_text": "Q:1+2="}
    return [RewardItem(text, "3", prompt, group, n) for n, text in enumerate(completions)]


TEXTS = ("A:3", "S:1+2=3;A:3", "A:4", "", "S:1+2=3;3+4=7;A:7", "A:33")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Directories of classifiers with one output, and with three."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    made = {}
    for outputs in (1, 3):
        torch.manual_seed(outputs)
        config = AutoConfig.from_pretrained(BASE, num_labels=outputs)
        if outputs == 3:
            config.id2label = {0: "bad", 1: "fair", 2: "good"}
        model = AutoModelForSequenceClassification.from_config(config)
        path = tmp_path_factory.mktemp("model") / f"outputs-{outputs}"
        model.save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BASE / name, path / name)
        made[outputs] = path
    return made


def one_by_one(path: Path, texts: list[str]) -> list[Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    model.config.pad_token_id = None
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts]


def test_scores_are_those_of_each_text_by_itself(models: dict[int, Path]) -> None:
    scores = reward_model(path=str(models[1])).grade(items(*TEXTS))
    expected = one_by_one(models[1], ["Q:1+2=" + text for text in TEXTS])
    for score, logits in zip(scores, expected, strict=True):
        assert score.score == pytest.approx(float(logits[0]), abs=1e-5)
    assert len({score.score for score in scores}) > 3


def test_padding_is_no_text_to_a_model_that_takes_images_too(tmp_path: Path) -> None:
    """Its config holds another one for texts, with a pad token of its own."""
    import torch
    from transformers import Gemma3Config, Gemma3ForSequenceClassification

    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    image = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text |= {"intermediate_size": 32, "vocab_size": 259, "pad_token_id": 0}
    config = Gemma3Config(text_config=text, vision_config=image, num_labels=1)
    Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    settings = json.loads((BASE / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<unk>"}), encoding="utf-8")
    shutil.copy(BASE / "tokenizer.json", tmp_path / "tokenizer.json")
    grader = reward_model(path=str(tmp_path))
    alone = [grader.grade(items(one))[0].score for one in TEXTS]
    assert [score.score for score in grader.grade(items(*TEXTS))] == pytest.approx(alone, abs=1e-5)


def test_a_prompt_from_a_chat_template_begins_once(save_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    """It begins with the token that the reward model's tokenizer puts before a text, too."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    vocabulary = save_tokenizer(tmp_path, "bytes", tokenizer_class="LlamaTokenizerFast").get_vocab_size()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    config = LlamaConfig(**sizes, vocab_size=vocabulary, num_labels=1, initializer_range=0.5)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    grader = reward_model(path=str(tmp_path))
    given = [
        RewardItem("31.", "31", {"prompt_id": "p", "question": "", "prompt_text": f"{begin}24+7="}, f"p@{number:08d}", 0)
        for number, begin in enumerate(("", "<s>", "<s><s>"))
    ]
    plain, begun, twice = (grader.grade([item])[0].score for item in given)
    assert plain == begun != twice


def test_scores_are_the_same_bits_whatever_is_graded_beside_them(models: dict[int, Path]) -> None:
    grader = reward_model(path=str(models[1]), batch_size=4)
    together = grader.grade([*items(*TEXTS), *items(*TEXTS[::-1], group="p1@01234567")])
    apart = grader.grade(items(*TEXTS)) + grader.grade(items(*TEXTS[::-1], group="p1@01234567"))
    assert together == apart


def test_one_of_several_outputs_is_the_score(models: dict[int, Path]) -> None:
    logits = one_by_one(models[3], ["Q:1+2=A:3"])[0]
    (score,) = reward_model(path=str(models[3]), label="good", output="probability").grade(items("A:3"))
    assert score.score == pytest.approx(float(logits.softmax(-1)[2]), abs=1e-5)
    (score,) = reward_model(path=str(models[3]), label=1).grade(items("A:3"))
    assert score.score == pytest.approx(float(logits[1]), abs=1e-5)
    with pytest.raises(UserError, match=r"has 3 outputs: 0 \(bad\), 1 \(fair\), 2 \(good\). Name one in args.label"):
        reward_model(path=str(models[3]))
    with pytest.raises(UserError, match=r"args.label: 'great' is none of the outputs"):
        reward_model(path=str(models[3]), label="great")


def test_a_text_that_is_too_long_is_an_error_of_its_row(models: dict[int, Path]) -> None:
    long, short = reward_model(path=str(models[1])).grade(items("3+4=" * 3000, "A:3"))
    assert long.score is None and "and the reward model takes 1 to" in str(long.error)
    assert short.score is not None


def test_a_language_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"has no weights for score.weight: it is no sequence-classification model"):
        reward_model(path=str(BASE))


def test_chat_needs_a_template(models: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its tokenizer has no chat template"):
        reward_model(path=str(models[1]), chat=True)
    path = tmp_path / "chat"
    shutil.copytree(models[1], path)
    settings = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    grader = reward_model(path=str(path), chat=True, system="S")
    assert grader._text(items("A:3")[0]) == "s:S;u:1+2;a:A:3;"
    grader._tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"
    assert grader._text(items("A:3")[0]) == "26 Jul 2024"  # the same text, and so the same score, on every day


def test_the_recipe_has_the_weights_hash_and_not_their_place(models: dict[int, Path], tmp_path: Path) -> None:
    component = RewardComponent(grader="reward_model", args={"path": str(models[1]), "batch_size": 4, "threads": 2})
    recipe = recipe_of(component)
    assert recipe["args"] == {"batch_size": 4}
    shutil.copytree(models[1], tmp_path / "copy")
    copied = RewardComponent(grader="reward_model", args={"path": str(tmp_path / "copy"), "batch_size": 4})
    assert recipe_of(copied) == recipe
    weights = tmp_path / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert recipe_of(copied)["source"] != recipe["source"]


def test_wrong_args_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": str(tmp_path / "empty")}, "not a Hugging Face model directory"),
        ({"path": str(BASE), "batch_size": 0}, "args.batch_size: 0, expected at least 1"),
        ({"path": str(BASE), "template": "{prompt}"}, "args.template: has no {completion}"),
        ({"path": str(BASE), "output": "score"}, "args.output: expected 'logit' or 'probability'"),
    ]
    for args, message in cases:
        with pytest.raises(UserError) as caught:
            resolve(RewardComponent(grader="reward_model", args=args))
        assert message in str(caught.value)
    absent = RewardComponent(grader="reward_model", args={"path": "./absent"})
    with pytest.raises(UserError, match=r"args.path: no directory ./absent"):
        recipe_of(absent)


@pytest.mark.slow
def test_a_pool_grades_by_a_reward_model_whatever_the_workers(models: dict[int, Path], grade: Any) -> None:
    components = [
        RewardComponent(grader="reward_model", args={"path": str(models[1])}),
        RewardComponent(grader="exact_match"),
    ]
    one, two = (grade(components, items(*TEXTS), workers=workers) for workers in (1, 2))
    assert one == two and all(result.error is None for result in one)
