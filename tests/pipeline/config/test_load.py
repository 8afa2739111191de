"""The run's YAML file: what is accepted, and what is said of what is not."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError
from pipeline.config.load import load_config
from pipeline.config.run import RunConfig
from schemas.example import meanings

Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def load(tmp_path: Path, settings: Settings) -> Callable[..., RunConfig]:
    """load("--set texts", more=YAML text, changes=dict): a config file read back."""

    def run(*overrides: str, more: str = "", changes: dict[str, Any] | None = None) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(settings(changes)) + more, encoding="utf-8")
        return load_config(file, overrides)

    return run


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every section by its dotted path."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        stack: list[Any] = [field.annotation]
        while stack:
            kind = stack.pop()
            if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel):
                found |= {name: kind} | {f"{name}.{path}": section for path, section in sections(kind).items()}
            stack += typing.get_args(kind)
    return found


SECTIONS = {"": RunConfig} | sections(RunConfig)


def test_the_sections_are_found() -> None:
    assert {"", "model", "data", "data.train", "generate", "reward", "reward.components", "train"} <= set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_every_setting_says_what_it_does(section: type[BaseModel]) -> None:
    said = meanings(section)
    assert [name for name in section.model_fields if not said.get(name, "").rstrip(")").endswith(".")] == []


def test_a_config_survives_its_json(make_config: Callable[..., RunConfig]) -> None:
    config = make_config({"generate.stop": ["\n", "A:"], "train.algorithm_args": {"low": 0.1}, "evaluate.k": [1, 8]})
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_run_lies_under_its_name_unless_it_is_told_otherwise(make_config: Callable[..., RunConfig]) -> None:
    config = make_config()
    assert (config.directory, config.store_url) == (Path("runs/small"), "runs/small/artifacts")
    config = make_config({"run_dir": "elsewhere", "store": "shared"})
    assert (config.directory, config.store_url) == (Path("elsewhere"), "shared")
    assert make_config({"run_dir": "elsewhere"}).store_url == "elsewhere/artifacts"


def test_a_tilde_is_the_home_directory_and_no_directory_of_that_name(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = make_config({"run_dir": "~/runs/a"})
    assert (config.directory, config.store_url) == (Path("/home/ada/runs/a"), "/home/ada/runs/a/artifacts")
    assert make_config({"store": "~/store"}).store_url == "/home/ada/store"
    assert make_config({"store": "s3://bucket/~/x"}).store_url == "s3://bucket/~/x"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("iteration", "did you mean `iterations`?"),
        ("model.pth", "did you mean `path`?"),
        ("data.templte", "did you mean `template`?"),
        ("data.train.anser", "did you mean `answer`?"),
        ("data.heldout.promptid", "did you mean `prompt_id`?"),
        ("engine.max_modl_len", "did you mean `max_model_len`?"),
        ("generate.temperatur", "did you mean `temperature`?"),
        ("reward.timeout", "did you mean `timeout_seconds`?"),
        ("shape.zero_varience", "did you mean `zero_variance`?"),
        ("train.lr", "did you mean `learning_rate`?"),
        ("train.epoch", "did you mean `epochs`?"),
        ("evaluate.sampls", "did you mean `samples`?"),
        ("evaluate.zzz", "valid keys: bootstrap, greedy, k, samples, sets, solved_at, solved_by, temperature"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(load: Callable[..., RunConfig], key: str, hint: str) -> None:
    with pytest.raises(UserError) as told:
        load(changes={key: 1})
    assert str(told.value).splitlines()[1:] == [f"  {key}: unknown key; {hint}"]


def test_an_unknown_key_of_a_component_is_named_with_its_place(load: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError) as told:
        load("reward.components=[{grader: regex}, {gradr: regex}]")
    assert str(told.value).splitlines()[1:] == [
        "  reward.components.1.grader: missing, and it has no default",
        "  reward.components.1.gradr: unknown key; did you mean `grader`?",
    ]


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: a\ndata: {train: {path: x}}\n", encoding="utf-8")
    with pytest.raises(UserError) as told:
        load_config(tmp_path / "run.yaml")
    assert str(told.value).splitlines() == [
        f"{tmp_path / 'run.yaml'}:",
        "  model: missing, and it has no default",
        "  data.heldout: missing, and it has no default",
        "  reward: missing, and it has no default",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("iterations=0", "iterations: Input should be greater than or equal to 1 (found 0)"),
        ("iterations=many", "(found 'many')"),
        ("train.epochs=1.5", "train.epochs: Input should be a valid integer, got a number with a fractional part (found 1.5)"),
        ("train.epochs=", "train.epochs: Input should be a valid integer (found None)"),
        ("train.learning_rate=0", "train.learning_rate: Input should be greater than 0 (found 0)"),
        ("train.learning_rate=.inf", "train.learning_rate: Input should be a finite number (found inf)"),
        ("evaluate.solved_at=.nan", "evaluate.solved_at: Input should be a finite number (found nan)"),
        ("train.betas=[0.9]", "train.betas.1: missing"),
        ("train.betas=[0.9, 1.0]", "train.betas.1: Input should be less than 1 (found 1.0)"),
        ("train.schedule=step", "train.schedule: Input should be 'constant', 'linear' or 'cosine' (found 'step')"),
        ("train=4", "train: expected a section of settings, found 4"),
        ("model.dtype=float16", "model.dtype: Input should be 'auto', 'float32' or 'bfloat16' (found 'float16')"),
        ("generate.top_p=0", "generate.top_p: Input should be greater than 0 (found 0)"),
        ("generate.temperature=-1", "generate.temperature: Input should be greater than or equal to 0 (found -1)"),
        ("generate.temperature=0.001", "generate.temperature: vLLM draws at 0.01 or above; expected that, or 0 for greedy"),
        ("generate.temperature=2.5", "generate.temperature: Input should be less than or equal to 2 (found 2.5)"),
        ("evaluate.temperature=0.001", "evaluate.temperature: Input should be greater than or equal to 0.01 (found 0.001)"),
        ("generate.stop=['']", "generate.stop.0: String should have at least 1 character (found '')"),
        ("evaluate.k=[1, 9]", "evaluate: k=9 needs between 1 and samples=8 completions per prompt"),
        ("reward.components={grader: regex}", "reward.components: expected a list: [a, b], or a line with a dash"),
        ("evaluate.k=4", "for each item; found 4"),
        ("reward.components=[]", "reward.components: Tuple should have at least 1 item"),
        ("reward.components=[{grader: regex}, {grader: regex}]", "reward: two components write reward_regex; give one of them"),
        ("reward.components=[{grader: regex, name: Bad Name}]", "reward.components.0.name: String should match pattern"),
        ("reward.components=[{grader: regex, args: {a: .nan}}]", "reward.components.0.args: only what JSON can hold"),
        ("reward.components=[{grader: regex, args: {a: 2024-01-01}}]", "reward.components.0.args: only what JSON can hold"),
        ("data.template=Q: {question}", "data.template: Input should be a valid string, found a mapping: a text with a colon"),
        ("model.path=''", "model.path: String should have at least 1 character (found '')"),
        ("data.train.path=''", "data.train.path: String should have at least 1 character (found '')"),
        ("name=../up", "name: String should match pattern"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (found -1)"),
        ("seed=9223372036854775808", "seed: Input should be less than 9223372036854775808"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(load: Callable[..., RunConfig], override: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        load(override)
    (line,) = str(told.value).splitlines()[1:]
    assert said in line


def test_every_problem_is_told_at_once(load: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError) as told:
        load("train.epochs=0", "generate.sample=3", "seed=x")
    assert [line.split(":")[0].strip() for line in str(told.value).splitlines()[1:]] == [
        "seed",
        "generate.sample",
        "train.epochs",
    ]


def test_set_reaches_any_depth(load: Callable[..., RunConfig]) -> None:
    config = load(
        "iterations=3",
        "train.epochs=2",
        "data.train.path=other.jsonl",
        "train.algorithm_args.low=0.1",
        "generate.stop=['\\n', \"A:\"]",
        "evaluate={samples: 2, k: [2]}",
        "reward.components=[{grader: regex, args: {pattern: 'x=(.*)'}, weight: 2}]",
        "data.template='Q: {question}'",
        "model.trust_remote_code=true",
        "store=null",
    )
    assert (config.iterations, config.train.epochs, config.data.train.path) == (3, 2, "other.jsonl")
    assert config.train.algorithm_args == {"low": 0.1}
    assert config.generate.stop == ("\\n", "A:")
    assert (config.evaluate.samples, config.evaluate.k) == (2, (2,))
    assert (config.reward.components[0].args, config.reward.components[0].weight) == ({"pattern": "x=(.*)"}, 2.0)
    assert config.data.template == "Q: {question}"
    assert config.model.trust_remote_code is True
    assert config.store is None


def test_a_later_set_wins(load: Callable[..., RunConfig]) -> None:
    assert load("train.epochs=2", "train.epochs=3", changes={"train.epochs": 1}).train.epochs == 3


def test_set_fills_a_section_that_the_file_leaves_empty(load: Callable[..., RunConfig]) -> None:
    assert load("train.epochs=3", more="train:\n").train.epochs == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs", "--set train.epochs: expected key=value, such as --set train.epochs=4"),
        ("=4", "--set =4: expected key=value"),
        ("", "--set : expected key=value"),
        ("name.first=x", "--set name.first=x: name is not a section"),
        (
            "reward.components.0.weight=2",
            "components is a list; change it in the file, or give all of it: --set 'reward.components=[…]'",
        ),
        ("train.epochs=[1", "--set train.epochs=[1: the value is not valid YAML"),
        ("train.epochs=!!python/object/apply:os.getcwd []", "the value is not valid YAML: the tag 'tag:yaml.org"),
        ("train.algorithm_args={low: 1, low: 2}", "the value is not valid YAML: the key 'low' is there twice"),
    ],
)
def test_a_set_that_cannot_be_understood_is_refused(load: Callable[..., RunConfig], override: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        load(override)
    assert said in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch made']", "!!python/name:os.system", "!env HOME"])
def test_yaml_tags_run_nothing(load: Callable[..., RunConfig], tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run\.yaml: not valid YAML: the tag '.*'; tags are not read \(line \d+, column 8\)"):
        load(more=f"store: {tag}\n")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "'1e-4'"])
def test_small_numbers_may_be_written_as_one_is_used_to(load: Callable[..., RunConfig], text: str) -> None:
    """YAML 1.1 reads 1e-4 as a text."""
    assert load(f"train.learning_rate={text}").train.learning_rate == 0.0001
    assert load(more=f"train: {{learning_rate: {text}}}\n").train.learning_rate == 0.0001
    arguments = load(f"train.algorithm_args={{low: {text}}}").train.algorithm_args
    assert "low=0.0001" in repr(resolve("rec-oneside-nois", arguments))


def test_a_grader_is_given_a_number_for_1e_4(load: Callable[..., RunConfig]) -> None:
    args = (
        load("reward.components=[{grader: regex, args: {a: 1e-4, b: -2E+3, c: 1e5x, d: '1e-4', e: 5}}]").reward.components[0].args
    )
    assert args == {"a": 0.0001, "b": -2000.0, "c": "1e5x", "d": "1e-4", "e": 5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "expected a mapping such as `name: demo`, found NoneType"),
        (b"- a\n", "expected a mapping such as `name: demo`, found list"),
        (b"demo", "expected a mapping such as `name: demo`, found str"),
        (b"name: [", "not valid YAML"),
        (b"name: a\n\titerations: 3\n", "not valid YAML"),
        (b"name: a\n---\nname: b\n", "not valid YAML: expected a single document"),
        (b"name: a\nname: b\n", "not valid YAML: the key 'name' is there twice"),
        (b"train: {epochs: 1, epochs: 2}\n", "not valid YAML: the key 'epochs' is there twice"),
        (b"[" * 500, "not valid YAML"),
        (b"name: a\x00b", "not valid YAML"),
        (b"\xff\xfename", "cannot be read"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "run.yaml").write_bytes(text)
    with pytest.raises(UserError) as told:
        load_config(tmp_path / "run.yaml")
    assert str(told.value).startswith(f"{tmp_path / 'run.yaml'}: {said}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"a directory, and not a run's YAML file"):
        load_config(tmp_path)


def test_anchors_and_merges_work(load: Callable[..., RunConfig]) -> None:
    config = load(
        more="generate: &same {samples: 4, prompts: 2}\nevaluate: {samples: &many 16, k: [*many]}\n<<: {iterations: 7}\n"
    )
    assert (config.generate.samples, config.evaluate.k, config.iterations) == (4, (16,), 7)
    merged = load(more="generate: &same {temperature: 0.5}\nevaluate: {<<: *same, temperature: 0.25}\n")
    assert merged.evaluate.temperature == 0.25


def test_the_demo_config_is_valid() -> None:
    assert load_config(Path(__file__).parents[3] / "configs" / "demo.yaml").name == "demo"


def test_a_key_that_other_readers_take_for_a_truth_value_is_a_name(load: Callable[..., RunConfig]) -> None:
    config = load(more='tell:\n  command: "true"\n  on: [stopped, finished]\n')
    assert tuple(config.tell.on) == ("stopped", "finished")
