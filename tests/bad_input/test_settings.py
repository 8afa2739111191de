"""Kinds of bad configurations, graders and models."""

from __future__ import annotations

from typing import Any

import pytest

WEIGHTS = "model/model.safetensors"
UNFOLDING = "".join(["x0: &x0 [1]\n", *(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 12))])
MERGING = "".join(["x0: &x0 {a: 1}\n", *(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}]}}\n" for i in range(1, 12))])
LABEL = {"rollouts": "r", "group_id": "g", "chosen_index": 0, "rejected_index": 1, "annotator": "ada"}
LABEL |= {"score_chosen": 1, "score_rejected": 0}
Kinds = dict[str, tuple[Any, ...]]

CONFIGS: Kinds = {
    "no such file": (lambda p: p.path("run.yaml").unlink(), "run.yaml: no such config file"),
    "a directory": (lambda p: None, "model: a directory, and not a run's YAML file", ("check", "model")),
    "not UTF-8": (lambda p: p.write("run.yaml", b"name: \xff"), "run.yaml: cannot be read: 'utf-8' codec"),
    "no mapping": (lambda p: p.write("run.yaml", "- 1"), "run.yaml: expected a mapping such as `name: demo`, found list"),
    "broken YAML": (lambda p: p.write("run.yaml", "name: [\n"), "run.yaml: not valid YAML: "),
    "a control character": (lambda p: p.write("run.yaml", "name: a\x07"), "run.yaml: not valid YAML: unacceptable character"),
    "two documents": (lambda p: p.write("run.yaml", "name: a\n---\nname: b\n"), "run.yaml: not valid YAML: expected a single"),
    "a key twice": (lambda p: p.more_yaml("name: b\n"), "run.yaml: not valid YAML: the key 'name' is there twice (line "),
    "a tag that runs code": (
        lambda p: p.more_yaml("store: !!python/object/apply:os.system ['touch made']\n"),
        "run.yaml: not valid YAML: the tag 'tag:yaml.org,2002:python/object/apply:os.system'; tags are not read (line ",
    ),
    "a harmless tag": (lambda p: p.more_yaml("store: !!str 3\n"), "tags are not read (line "),
    "aliases that unfold": (lambda p: p.more_yaml(UNFOLDING), "run.yaml: not valid YAML: unfolds into more than 100,000 values"),
    "merges that unfold": (lambda p: p.more_yaml(MERGING), "run.yaml: not valid YAML: unfolds into more than 100,000 values"),
    "an alias of what it lies in": (lambda p: p.more_yaml("store: &x [*x]\n"), "an alias that stands for what it lies in (line "),
    "lists inside lists": (lambda p: p.more_yaml("store: " + "[" * 1000), "too many lists or mappings inside one another"),
    "no day of the calendar": (lambda p: p.more_yaml("store: 2024-13-45\n"), "month must be in 1..12 (line "),
    "a number of 5,000 digits": (lambda p: p.more_yaml("seed: " + "9" * 5000), "Exceeds the limit (4300 digits)"),
    "true for a number": (
        lambda p: p.settings(train__epochs=True),
        "train.epochs: expected another value than true or false (yes, no, on and off are these too, unless in quotes)",
    ),
    "yes for a number": (lambda p: p.more_yaml("iterations: yes\n"), "iterations: expected another value than true or false"),
    "true in a list of numbers": (lambda p: p.settings(evaluate__k=[True]), "evaluate.k: expected another value than true"),
    "true in an algorithm": (
        lambda p: p.settings(train__algorithm_args={"low": True}),
        "train.algorithm_args: low: expected another value than true or false (found True)",
    ),
    "an unknown key": (lambda p: p.settings(train__epoch=3), "train.epoch: unknown key; did you mean `epochs`?"),
    "a number out of range": (lambda p: p.settings(generate__top_p=1.5), "generate.top_p: Input should be less than"),
    "infinity": (lambda p: p.settings(train__learning_rate=float("inf")), "train.learning_rate: Input should be a finite number"),
    "a name that leaves its directory": (lambda p: p.settings(name="../../etc"), "name: String should match pattern"),
    "text for a section": (lambda p: p.settings(train="fast"), "train: expected a section of settings, found 'fast'"),
    "an unknown algorithm": (lambda p: p.settings(train__algorithm="gpro"), "no algorithm 'gpro'; did you mean "),
    "no question in the template": (lambda p: p.settings(data__template="Q:"), "data.template: has no {question} in it"),
    "chat without a chat template": (
        lambda p: p.settings(data__chat=True),
        "data.chat: this model's tokenizer has no chat template. Set chat: false and write data.template",
    ),
    "phases that overlap": (
        lambda p: p.settings(iterations=4, phases=[{"iterations": "0-1"}, {"iterations": "1-"}]),
        "phases.1.iterations: an overlap: phases.0 ends with iteration 1, and this one begins with 1; expected 2-",
    ),
    "a hole between phases": (
        lambda p: p.settings(iterations=4, phases=[{"iterations": 0}, {"iterations": "2-"}]),
        "phases.1.iterations: a hole: phases.0 ends with iteration 0, and this one begins with 2; expected 1-",
    ),
    "phases that end too early": (
        lambda p: p.settings(iterations=4, phases=[{"iterations": "0-2"}]),
        "phases: a hole: the last phase ends with iteration 2, and the run's last is 3",
    ),
    "an unknown key in a phase": (
        lambda p: p.settings(phases=[{"iterations": "0-", "train": {"epoch": 3}}]),
        "phases.0.train.epoch: unknown key; did you mean `epochs`?",
    ),
    "a phase that changes how checkpoints are judged": (
        lambda p: p.settings(phases=[{"iterations": "0-", "generate": {"max_tokens": 3}}]),
        "phases.0.generate.max_tokens: held-out answers are drawn by it too",
    ),
    "an unknown algorithm in a phase": (
        lambda p: p.settings(iterations=2, phases=[{"iterations": 0}, {"iterations": 1, "train": {"algorithm": "gpro"}}]),
        "iteration 1: train.algorithm: no algorithm 'gpro'; did you mean ",
    ),
    "a schedule of no number": (
        lambda p: p.settings(schedules={"train.algorithm": {"linear": [0, 1], "until": 3}}),
        "schedules.train.algorithm: no number, so nothing that a schedule could move",
    ),
    "a schedule of what an algorithm does not have": (
        lambda p: p.settings(schedules={"train.algorithm_args.beta": {"linear": [0, 1], "until": 3}}),
        "has no setting 'beta'",
    ),
    "a schedule without an end": (
        lambda p: p.settings(schedules={"train.learning_rate": {"linear": [1e-5, 1e-6]}}),
        "schedules.train.learning_rate: linear and cosine need `until`",
    ),
    "a reference that is not made yet": (
        lambda p: p.settings(iterations=4, reference={"iteration": 2}),
        "reference: the checkpoint of iteration 2 is not made yet when iteration 0 trains; expected at most 0",
    ),
    "a mixture with a model of other tokens": (
        lambda p: p.other_model({"a": 1, "b": 0}) or p.settings(generate__mixture={"with": "./other"}),
        "generate.mixture.with: ./other: its tokens are not those of this run's model: token 0 is 'a' here and 'b' there (1 of 1",
    ),
    "a mixture with a larger vocabulary": (
        lambda p: p.other_model({"a": 0}, vocab_size=9) or p.settings(generate__mixture={"with": "./other"}),
        "generate.mixture.with: ./other: its vocabulary has 9 entries, and that of this run's model None; a mixture adds logits",
    ),
    "a mixture in a phase, with a model of other tokens": (
        lambda p: (
            p.other_model({"b": 0})
            or p.settings(
                iterations=2, phases=[{"iterations": 0}, {"iterations": 1, "generate": {"mixture": {"with": "./other"}}}]
            )
        ),
        "generate.mixture.with: ./other: its tokens are not those of this run's model",
    ),
    "a mixture by a server": (
        lambda p: p.settings(generate__mixture={"with": "reference"}, engine__server={"url": ["http://localhost:8000"]}),
        "generate.mixture: needs engines of the run's own, and engine.server names servers, which hold one model; leave ",
    ),
    "a mixture by a server, in a phase": (
        lambda p: p.settings(
            iterations=2,
            engine__server={"url": ["http://localhost:8000"]},
            phases=[{"iterations": 0}, {"iterations": 1, "generate": {"mixture": {"with": "reference"}}}],
        ),
        "generate.mixture: needs engines of the run's own, and engine.server names servers",
    ),
    "a reference that is nowhere": (lambda p: p.settings(reference="./gone"), "reference: no directory ./gone"),
    "a store of an unknown kind": (
        lambda p: p.settings(store="ftp://host/store"),
        "store: ftp:// is not supported; use a directory, or s3://bucket/prefix",
        ("run", "run.yaml"),
    ),
}

GRADERS: Kinds = {
    "an unknown grader": (lambda p: p.grader(grader="exact"), "components.0 (exact): no such grader; did you mean exact_match?"),
    "no such module": (
        lambda p: p.grader(grader="nowhere:grade"),
        "(nowhere:grade): no module 'nowhere' in the working directory",
    ),
    "no such function": (lambda p: p.own_grader("lacks", "def grad(a, b, c): ..."), "has no 'grade'; did you mean grad?"),
    "a module that fails": (lambda p: p.own_grader("fails", "1 / 0"), "importing fails failed: ZeroDivisionError"),
    "a module that exits": (lambda p: p.own_grader("exits", "raise SystemExit(3)"), "importing exits failed: SystemExit: 3"),
    "a part of Python": (
        lambda p: p.grader(grader="subprocess:run"),
        "(subprocess:run): subprocess is part of Python; a grader is a function of your own",
    ),
    "too few arguments": (
        lambda p: p.own_grader("lonely", "def grade(x): ..."),
        "(lonely:grade): its signature is (x), and parameters are matched by name: ",
    ),
    "a coroutine": (lambda p: p.own_grader("later", "async def grade(a, b, c): ..."), "is an `async def`; a grader is a plain"),
    "an unknown argument": (
        lambda p: p.grader(grader="regex", args={"patern": "x"}),
        "unknown arg `patern`; did you mean `pattern`?",
    ),
    "an argument of another type": (
        lambda p: p.grader(grader="regex", args={"pattern": 3}),
        "args.pattern: expected str, found 3",
    ),
    "a broken pattern": (lambda p: p.grader(grader="regex", args={"pattern": "(["}), "reward.components.0 (regex): "),
    "a judge of pairs that contradicts itself": (
        lambda p: p.grader(
            grader="pairwise_judge",
            args={
                **{"url": "http://localhost:1/v1", "model": "m", "template": "{first} or {second}?", "pattern": "[AB]"},
                "values": {"A": 1, "B": 1},
            },
        ),
        "args.values: no verdict prefers the second completion, so that the judge, which is asked in both orders, contradicts",
    ),
    "labels of one side": (
        lambda p: (
            p.write("l.csv", "prompt_id,sample_index,reward\np,0,1\np,1,1.0\nq,0,\n")
            or p.settings(reward__components=[{"grader": "from_file", "args": {"path": "l.csv"}}], train__algorithm="dpo")
        ),
        "(from_file): l.csv, column reward: every label is 1, so that no completion is better than another, and dpo learns from",
    ),
    "comparisons of which all are ties": (
        lambda p: (
            p.write("l.jsonl", [{**LABEL, "score_chosen": 0.5, "score_rejected": 0.5}])
            or p.settings(shape__labels="l.jsonl", train__algorithm="ipo")
        ),
        "shape.labels: l.jsonl: 1 pair is labelled, and in all of them both completions are as good as each other",
    ),
    "comparisons that contradict one another": (
        lambda p: (
            p.write("l.jsonl", [LABEL, {**LABEL, "chosen_index": 1, "rejected_index": 0}])
            or p.settings(shape__labels="l.jsonl", train__algorithm="ipo")
        ),
        "shape.labels: l.jsonl, line 2: ada contradicts line 1: the same pair of group g with another preference. Keep one",
    ),
    "comparisons for a method that takes none": (
        lambda p: p.settings(shape__labels="l.jsonl", train__algorithm="grpo"),
        "shape.labels: grpo learns from rewards, not from pairs that were compared. Use a method on pairs, such as ipo or dpo",
    ),
    "an infinite weight": (
        lambda p: p.grader(grader="exact_match", weight=float("nan")),
        "weight is nan, expected a finite number",
    ),
    "two of one name": (
        lambda p: p.settings(reward__components=[{"grader": "exact_match"}] * 2),
        "reward: two components write reward_exact_match; give one of them another `name`",
    ),
}

MODELS: Kinds = {
    "no such directory": (
        lambda p: p.settings(model__path="nowhere"),
        "model.path: no directory nowhere. Give a model directory",
    ),
    "a file": (lambda p: p.settings(model__path="./train.jsonl"), "model.path: no directory ./train.jsonl"),
    "not to be had": (lambda p: p.settings(model__path="owner/name"), "owner/name is no local directory and could not be had"),
    "no config.json": (lambda p: p.path("model/config.json").unlink(), "model: not a Hugging Face model directory"),
    "broken config.json": (lambda p: p.write("model/config.json", "{"), "model/config.json: not valid JSON: "),
    "deep config.json": (lambda p: p.write("model/config.json", "[" * 100_000), "model/config.json: not valid JSON: "),
    "config.json of another shape": (
        lambda p: p.write("model/config.json", "[]"),
        "config.json: expected a JSON object, found list",
    ),
    "code of its own": (
        lambda p: p.write("model/config.json", '{"auto_map": {"AutoModel": "evil.Model"}}'),
        "model/config.json: this model needs Python code that ships with it. Read that code; if you trust it, set model.trust",
    ),
    "pickled weights only": (
        lambda p: p.path(WEIGHTS).rename(p.path("model/pytorch_model.bin")),
        "model: no .safetensors weights. Pickled weights are not read; convert them with `model.save_pretrained(",
    ),
    "weights cut off": (lambda p: p.write(WEIGHTS, b"\x02\0\0\0\0\0\0\0{"), "model.safetensors: not whole: "),
    "weights with a header of 1 TB": (
        lambda p: p.write(WEIGHTS, (1 << 40).to_bytes(8, "little") + b"{}"),
        "model.safetensors: not whole: Error while deserializing header: header too large. Copy or download it again",
    ),
    "weights that are a pickle": (lambda p: p.write(WEIGHTS, b"\x80\x04\x95" * 9), "model.safetensors: not whole: "),
    "a pointer of Git LFS": (
        lambda p: p.write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
        "Copy or download it again: it is a Git LFS pointer, `git lfs pull` fetches the file",
    ),
    "an index that names a missing file": (
        lambda p: p.write(f"{WEIGHTS}.index.json", '{"weight_map": {"a": "other.safetensors"}}'),
        "model.safetensors.index.json: names other.safetensors, which is not in model",
    ),
    "an index that names a file elsewhere": (
        lambda p: p.write(f"{WEIGHTS}.index.json", '{"weight_map": {"a": "../../x.safetensors"}}'),
        "model.safetensors.index.json: names ../../x.safetensors, which is not in model",
    ),
    "a link to a file elsewhere": (
        lambda p: p.link("model/tokenizer.json", "/etc/hostname"),
        "model/tokenizer.json: a link to /etc/hostname, outside the model. Put the file itself there",
    ),
    "no tokenizer": (lambda p: p.path("model/tokenizer.json").unlink(), "model: no tokenizer (such as tokenizer.json)"),
}


@pytest.mark.parametrize("kind", CONFIGS.values(), ids=CONFIGS)
def test_bad_configurations_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)
    assert not project.path("made").exists()


@pytest.mark.parametrize("kind", GRADERS.values(), ids=GRADERS)
def test_bad_graders_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_bad_models_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)
