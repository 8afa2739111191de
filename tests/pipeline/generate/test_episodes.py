"""Episodes: what is drawn stays as it was drawn, the environment's tokens are masked, and every end has its name."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import polars as pl
import pytest

from flows.cli import answer
from pipeline.common.errors import UserError
from pipeline.config.environment import EnvironmentConfig
from pipeline.config.run import RunConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.order import rollouts_request
from pipeline.generate.seeds import turn_seed
from pipeline.generate.stage import generate
from pipeline.look.audit.audit import audit
from pipeline.look.upkeep.repair import drop_shards, find_damage, set_aside
from pipeline.regrade.plan import grade_request
from pipeline.regrade.stage import grade
from pipeline.run.process import Reporter
from pipeline.shape.stage import calls_of
from pipeline.sources import models as base_model
from pipeline.sources.order import import_request
from pipeline.sources.tokenizer import load_tokenizer
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.store import load_artifact
from schemas import Prompts, Rollouts, Turns

BASE = Path(__file__).resolve().parents[3] / "data" / "base"
EOS = 1
GAMES = """
    import os, time

    class Guess:
        # says how far off a guess is, pays for the right one, and fails, fills the context or never ends where it is told to
        deterministic = True

        def __init__(self, most=99):
            self.most = most

        def start(self, prompt, seed):
            self.wanted = int(prompt["answer"])

        def step(self, action):
            match action:
                case "fail":
                    raise ValueError("no such move")
                case "long":
                    return "x" * 1000, None, False, {}
                case "million":
                    return "x" * (1 << 20), None, False, {}
                case "special":
                    return "<eos><pad>", -0.25, False, {}
                case "hang":
                    time.sleep(60)
                case "fork":
                    if os.fork() == 0:
                        time.sleep(60)
                    return " forked", None, False, {}
                case "slow":
                    begun = time.monotonic()
                    time.sleep(2)
                    with open("slow.txt", "a") as file:
                        print(begun, time.monotonic(), file=file)
                    return "1", None, False, {}
                case "several":
                    return ["a", {"role": "tool", "name": "t", "content": "b", "error": True}], None, False, {}
            off = int(action) - self.wanted
            return f" off by {off}", 1.0 if off == 0 else -0.25, off == 0, {}

    class Asks(Guess):
        # reads what stands behind a "=", and asks as a user
        def step(self, action):
            off = int(action.split("=")[-1]) - self.wanted
            return [{"role": "user", "content": f"<eos> off by {off}"}], 1.0 if off == 0 else -0.25, off == 0, {}
"""
THINKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('=')[-1] + '<eos>' }}"
    "{% else %}{{ m.role[0] + ':' + m.content + '<eos>' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ 'a:' }}"
    "{% elif loop.nextitem.role == 'assistant' %}{{ 'a:' }}{% endif %}{% endfor %}"
)
"""A chat template that leaves out of earlier turns what stands before a "=", as Qwen3's does with what it thought."""

Script = Callable[[int, int], list[str]]
"""What the policy says in each turn of a group's sample; a turn ends with <eos>, unless it ends with "…": then it is cut."""


class Scripted:
    """Says what a script says, as an engine that draws token by token, and remembers what it was asked."""

    name = "scripted"
    tokens: list[int] = []

    def __init__(self, script: Script) -> None:
        self.notes: dict[str, Any] = {}
        self.tokenizer = load_tokenizer(BASE, trust_remote_code=False)
        self.asked: list[CompletionRequest] = []
        self._script, self._bell = script, SimpleQueue[None]()
        self._turn: dict[tuple[int, int, int], int] = {}

    def engine_for(self, *_: Any, **__: Any) -> Scripted:
        return self

    def rest(self) -> None: ...

    def wake(self) -> None:
        self._bell.put(None)

    def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[list[Reply]]:
        waiting = deque[CompletionRequest]()
        for several in asks:
            waiting += several
            if waiting:
                yield [self._reply(waiting.popleft())]
            elif not several:
                self._bell.get(timeout=60)
        while waiting:
            yield [self._reply(waiting.popleft())]

    def _reply(self, ask: CompletionRequest) -> Reply:
        self.asked.append(ask)
        turn = self._turn[ask.key] = self._turn.get(ask.key, -1) + 1
        text = self._script(ask.key[1], ask.key[2])[turn]
        tokens = [*self.tokenizer.encode(text.removesuffix("…")), *([] if text.endswith("…") else [EOS])]
        tokens, reason = tokens[: ask.sampling.max_tokens], "stop"
        if len(tokens) == ask.sampling.max_tokens and tokens[-1] != EOS:
            reason = "length"
        return Reply(ask.key, tokens, [-0.5] * len(tokens), reason, None, None)


class Player:
    """A model and prompts in a store, and rollouts of it with an environment."""

    def __init__(self, root: Path, config: RunConfig, template: str | None = None) -> None:
        self.store, self.config = Store(root), config
        model = BASE
        if template is not None:
            model = root.parent / "chat-model"
            shutil.copytree(BASE, model)
            (model / "chat_template.jinja").write_text(template, encoding="utf-8")
        files = base_model.model_files(model)
        self.policy = base_model.import_model(self.store, import_request({"all": "1"}), files, "here", None)
        rows = [{"prompt_id": f"p{n}", "question": f"{n}+1", "answer": "1", "prompt_text": f"Q:{n}+1="} for n in range(2)]
        recipe: dict[str, Any] = {"chat": False}
        if template is not None:
            recipe = {"chat": True, "template": "{question}", "system": None}
            rows = [{**row, "prompt_text": f"u:{row['question']}<eos>a:"} for row in rows]
        with self.store.work(Request("prompts", "prompts/1", recipe)) as work:
            assert isinstance(work, Work)
            work.write_table("prompts.parquet", pl.DataFrame(rows).with_columns(metadata=pl.lit(None, pl.String)), Prompts)
            self.prompts = work.finish({"prompts": 2})

    def play(self, script: Script, environment: dict[str, Any], components: Sequence[dict[str, Any]] = ()) -> Any:
        """The finished artifact, and the engine."""
        reward = self.config.reward.model_validate({"components": list(components) or [{"grader": "environment"}]})
        told = EnvironmentConfig.model_validate(environment)
        config = self.config.model_copy(update={"reward": reward, "environment": told})
        request, engine = rollouts_request(config, 0, self.policy, self.prompts), Scripted(script)
        spec = {
            "store": str(self.store.root),
            "policy": str(self.policy.path),
            "trust_remote_code": False,
            "engine": config.engine.model_dump(mode="json"),
            "reward": reward.model_dump(mode="json"),
            "environment": told.model_dump(mode="json"),
            "jobs": [{"request": request.to_json(), "prompts": str(self.prompts.path)}],
        }
        made = generate(spec, _silent(), engine)
        return load_artifact(made["artifacts"][0]), engine


def _silent() -> Reporter:
    return Reporter(os.open(os.devnull, os.O_WRONLY))


@pytest.fixture
def player(make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Player:
    (tmp_path / "games.py").write_text(textwrap.dedent(GAMES), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = make_config({"generate.prompts": 2, "generate.samples": 2, "generate.max_tokens": 16, "generate.shard_groups": 1})
    return Player(tmp_path / "store", config)


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return read_table(artifact, Rollouts).sort("group_id", "sample_index").to_dicts()


def turns_of(artifact: Artifact, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    turns = read_table(artifact, Turns).filter(pl.col("group_id") == row["group_id"], sample_index=row["sample_index"])
    return turns.sort("turn").select("start", "length", "who", "name", "reward", "status").rows()


def test_an_episode_is_a_row_whose_tokens_are_partly_the_environments(player: Player) -> None:
    made, engine = player.play(lambda group, sample: ["7", "1"][sample == 1 :], {"name": "games:Guess"})
    first, second, *_ = rows_of(made)
    said = engine.tokenizer.encode(" off by 6")
    seven, one = (engine.tokenizer.encode(text) for text in "71")
    assert first["completion_token_ids"] == [*seven, EOS, *said, *one, EOS]
    assert first["action_mask"] == [True] * 2 + [False] * len(said) + [True] * 2
    assert first["behavior_logprobs"] == [-0.5] * 2 + [0.0] * len(said) + [-0.5] * 2
    assert first["completion_text"] == "7 off by 61" and (first["status"], first["finish_reason"]) == ("ok", "stop")
    assert (first["reward"], first["reward_environment"]) == (0.75, 0.75)
    assert turns_of(made, first) == [
        (0, 2, "policy", None, -0.25, "ok"),
        (2, len(said), "environment", None, None, "ok"),
        (2 + len(said), 2, "policy", None, 1.0, "ok"),
    ]
    assert second["action_mask"] is None and second["reward"] == 1.0 and len(turns_of(made, second)) == 1


def test_the_prompt_of_a_turn_is_the_tokens_of_the_last_one(player: Player) -> None:
    made, engine = player.play(lambda group, sample: ["7", "8", "1"], {"name": "games:Guess"})
    asks = [ask for ask in engine.asked if ask.key == (0, 0, 0)]
    row = next(row for row in rows_of(made) if row["seed"] == asks[0].seed)
    whole = row["prompt_token_ids"] + row["completion_token_ids"]
    starts = [start for start, _, who, *_ in turns_of(made, row) if who == "policy"]
    assert [ask.prompt_token_ids for ask in asks] == [whole[: len(row["prompt_token_ids"]) + start] for start in starts]
    assert [ask.seed for ask in asks] == [turn_seed(row["seed"], number) for number in range(3)]
    assert len({ask.seed for ask in asks}) == 3


def test_twelve_turns_beside_one(player: Player) -> None:
    made, _ = player.play(lambda group, sample: ["9"] * (11 * sample) + ["1"], {"name": "games:Guess", "max_turns": 12})
    assert [sum(who == "policy" for _, _, who, *_ in turns_of(made, row)) for row in rows_of(made)] == [1, 12, 1, 12]
    assert {row["status"] for row in rows_of(made)} == {"ok"}


@pytest.mark.parametrize(
    ("says", "environment", "ends", "turns"),
    [
        (["7", "7", "7"], {"max_turns": 2}, ("truncated", "turns"), ["ok", "ok", "ok"]),
        (["7" * 40], {}, ("truncated", "length"), ["turn_limit"]),
        (["7", "7" * 40], {"max_tokens": 20}, ("truncated", "tokens"), ["ok", "ok", "episode_limit"]),
        (["7", "7"], {"max_tokens": 11}, ("truncated", "tokens"), ["ok"]),
        (["long"], {}, ("truncated", "context"), ["ok"]),
        (["million"], {}, ("truncated", "context"), ["ok"]),
    ],
)
def test_every_cut_has_its_name(player: Player, says: list[str], environment: Any, ends: Any, turns: list[str]) -> None:
    made, _ = player.play(lambda group, sample: says, {"name": "games:Guess", **environment})
    row = rows_of(made)[0]
    assert (row["status"], row["finish_reason"]) == ends and row["reward"] <= 0
    assert [status for *_, status in turns_of(made, row)] == turns


def test_an_environment_that_fails_marks_its_episode_and_the_others_go_on(player: Player) -> None:
    script = lambda group, sample: ["7", "fail"] if (group, sample) == (0, 0) else ["1"]  # noqa: E731
    made, _ = player.play(script, {"name": "games:Guess", "max_failed_share": 0.25})
    first, *others = sorted(rows_of(made), key=lambda row: row["status"])
    assert (first["status"], first["error"], first["reward"]) == ("environment_error", "ValueError: no such move", None)
    assert len(first["action_mask"]) == len(first["completion_token_ids"]) and {row["status"] for row in others} == {"ok"}
    assert audit(made.path).status == 0


def test_an_environment_that_hangs_or_forks_holds_up_nobody(player: Player, tmp_path: Path) -> None:
    says = [["hang"], ["fork", "1"]]
    told = {"name": "games:Guess", "timeout_seconds": 2.0, "max_failed_share": 0.5}
    made, _ = player.play(lambda group, sample: says[sample], told)
    hung, forked, *_ = rows_of(made)
    assert (hung["status"], hung["error"]) == ("environment_error", "no answer within 2 s")
    assert (forked["status"], forked["completion_text"], forked["reward"]) == ("ok", "fork forked1", 1.0)


def test_slow_environments_are_waited_for_together(player: Player, tmp_path: Path) -> None:
    """Four episodes with a step of 2 s each: all have begun theirs before the first has ended it."""
    made, _ = player.play(lambda group, sample: ["slow", "1"], {"name": "games:Guess"})
    assert {row["status"] for row in rows_of(made)} == {"ok"}
    times = [tuple(map(float, line.split())) for line in (tmp_path / "slow.txt").read_text().splitlines()]
    assert len(times) == 4 and max(begun for begun, _ in times) < min(ended for _, ended in times)


def test_the_order_in_which_environments_answer_changes_nothing(player: Player, tmp_path: Path) -> None:
    """The same episodes with one in flight and with all: the same bytes."""
    told = {"name": "games:Guess"}
    script = lambda group, sample: ["7"] * (2 * group + sample) + ["1"]  # noqa: E731
    one, _ = player.play(script, {**told, "in_flight": 1})
    (again := Player(tmp_path / "other", player.config)).play(script, {**told, "in_flight": 64})
    two, _ = again.play(script, {**told, "in_flight": 64})
    assert one.id == two.id and one.path != two.path


def test_too_many_failures_stop_the_run_and_are_played_again(player: Player) -> None:
    with pytest.raises(UserError, match=r"the environment failed in 1 of 4 episodes, more than environment.max_failed_share=0.2"):
        player.play(lambda group, sample: ["fail"] if (group, sample) == (0, 0) else ["1"], {"name": "games:Guess"})
    made, _ = player.play(lambda group, sample: ["1"], {"name": "games:Guess"})
    assert made.summary["statuses"] == {"ok": 4}


def test_names_of_special_tokens_in_what_it_says_stay_text(player: Player) -> None:
    made, engine = player.play(lambda group, sample: ["special", "1"], {"name": "games:Guess"})
    row = rows_of(made)[0]
    said = [id for id, drawn in zip(row["completion_token_ids"], row["action_mask"], strict=True) if not drawn]
    assert len(said) == len("<eos><pad>") and engine.tokenizer.decode(said, skip_special_tokens=True) == "<eos><pad>"


def test_several_messages_are_turns_of_their_own(player: Player) -> None:
    made, _ = player.play(lambda group, sample: ["several", "1"], {"name": "games:Guess"})
    assert [turn[2:4] + turn[5:] for turn in turns_of(made, rows_of(made)[0])] == [
        ("policy", None, "ok"),
        ("environment", None, "ok"),
        ("tool", "t", "tool_error"),
        ("policy", None, "ok"),
    ]


def test_the_calculator_works_out_what_stands_between_brackets(player: Player) -> None:
    graders = [{"grader": "regex", "args": {"pattern": r"A:(-?[0-9]+)$"}}]
    made, _ = player.play(lambda group, sample: ["[0+1]", "[2**]", " A:1"], {"name": "calculator"}, graders)
    row = rows_of(made)[1]
    assert row["completion_text"] == "[0+1]1[2**]? A:1" and row["reward"] == 1.0
    assert [turn[3:] for turn in turns_of(made, row)][1::2] == [("calculator", None, "ok"), ("calculator", None, "tool_error")]
    found = audit(made.path, deep=True, samples=4)
    assert not [f for f in found.findings if f.severity == "error" and f.check not in ("logprobs", "seed", "prompts drawn")]
    assert ("episodes played again", 4, 4) in [(count.what, count.done, count.total) for count in found.counts]


def test_tools_that_are_built_in_are_called_again_by_a_deep_audit(player: Player) -> None:
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "0+1"}}</tool_call>'
    graders = [{"grader": "exact_match"}]
    player.config = player.config.model_copy(update={"generate": player.config.generate.model_copy(update={"max_tokens": 100})})
    made, _ = player.play(lambda group, sample: [call, "", "1"], {"tools": ["calculator"]}, graders)
    assert [turn[2:] for turn in turns_of(made, rows_of(made)[0])] == [
        ("policy", None, None, "ok"), ("tool", "calculator", None, "ok"), ("policy", None, None, "void"),
    ]  # fmt: skip
    found = audit(made.path, deep=True, samples=4)
    assert not [f for f in found.findings if f.severity == "error" and f.check not in ("logprobs", "seed", "prompts drawn")]
    assert ("episodes played again", 4, 4) in [(count.what, count.done, count.total) for count in found.counts]
    assert [turn_differs(name) for name in ("calculater", "calculator")] == [True, False]


def turn_differs(name: str) -> bool:
    """Whether an episode whose tool has this name is not what the calculator gives."""
    from pipeline.environments.host import Host
    from pipeline.generate.between import PlainBetween
    from pipeline.generate.engine import EpisodeTurn
    from pipeline.look.audit.deep.episodes import _Game

    tokenizer = load_tokenizer(BASE, trust_remote_code=False)
    said, drawn = tokenizer.encode("1"), [*tokenizer.encode("[0+1]"), EOS]
    turns = [
        EpisodeTurn(0, len(drawn), "policy"),
        EpisodeTurn(len(drawn), len(said), "tool", name),
        EpisodeTurn(len(drawn) + len(said), 1, "policy"),
    ]
    row = {"row": 0, "sample_index": 0, "completion_token_ids": [*drawn, *said, EOS], "group_id": "g@1", "finish_reason": "stop"}
    recipe = {"sampling": {}, "selection": {"seed": 0, "iteration": 0}, "purpose": "train"}
    with Host(EnvironmentConfig(name="calculator")) as host:
        return _Game(host, PlainBetween(tokenizer), tokenizer, recipe).difference(row, turns, {}) is not None


def test_stored_episodes_are_graded_again_by_what_the_environment_gave(player: Player) -> None:
    graders = [{"grader": "exact_match"}]
    made, _ = player.play(lambda group, sample: ["7", "1"], {"name": "games:Guess"}, graders)
    reward = player.config.reward.model_validate({"components": [{"grader": "environment"}]})
    job = {"request": grade_request(made, reward).to_json(), "rollouts": str(made.path), "prompts": str(player.prompts.path)}
    graded = grade({"store": str(player.store.root), "reward": reward.model_dump(mode="json"), "jobs": [job]}, _silent())
    again = load_artifact(graded["artifacts"][0])
    assert {row["reward"] for row in rows_of(made)} == {0.0} and {row["reward"] for row in rows_of(again)} == {0.75}
    assert [turns_of(made, row) for row in rows_of(made)] == [turns_of(again, row) for row in rows_of(again)]
    assert audit(again.path).status == 0


def test_repair_drops_a_shard_whose_turns_are_damaged(player: Player) -> None:
    made, _ = player.play(lambda group, sample: ["7", "1"], {"name": "games:Guess"})
    path = made.path / "turns-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    mended = drop_shards(find_damage(made))
    assert sorted(file.path for file in mended.files) == ["part-00000.parquet", "turns-00000.parquet"]
    assert mended.summary["episodes"]["turns"] == 4 and audit(mended.path).count("error") == 0


def test_a_damaged_file_of_turns_is_made_anew_to_the_same_bytes(player: Player) -> None:
    made, _ = player.play(lambda group, sample: ["7", "1"], {"name": "games:Guess"})
    path = made.path / "turns-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    set_aside(find_damage(made))
    again, engine = player.play(lambda group, sample: ["7", "1"], {"name": "games:Guess"})
    assert again.id == made.id and {ask.key[1] for ask in engine.asked} == {1}


def test_an_export_has_the_turns_and_comes_back_with_the_same_tokens_and_mask(
    player: Player, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = player.play(lambda group, sample: ["7", "1"][sample:], {"name": "games:Guess"})
    assert answer(["export", str(made.path), "--to", "dataset", "--out", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data/data/turns-00000.parquet").read_bytes() == (made.path / "turns-00000.parquet").read_bytes()
    store = ["--store", str(tmp_path / "other"), "--model", str(BASE)]
    assert answer(["import", str(tmp_path / "data"), *store]) == 0
    (place,) = (tmp_path / "other" / "rollouts").iterdir()
    columns = ["prompt_token_ids", "completion_token_ids", "action_mask", "behavior_logprobs", "reward"]
    one, two = (
        read_table(artifact, Rollouts).sort("prompt_id", "sample_index") for artifact in (made, load_artifact(str(place)))
    )
    assert one.select(columns).equals(two.select(columns))
    capsys.readouterr()
    assert answer(["export", str(made.path), "--to", "sft", "--out", str(tmp_path / "sft")]) == 2
    assert "a trainer would learn what an environment said" in capsys.readouterr().err


def test_diff_finds_the_turns_that_differ(player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = player.play(lambda group, sample: ["7", "1"], {"name": "games:Guess"})
    two, _ = player.play(lambda group, sample: ["7", "1"], {"name": "games:Guess", "args": {"most": 5}})
    assert answer(["diff", str(one.path), str(two.path), "--json"]) in (0, 1)
    tables = {table["table"] for table in json.loads(capsys.readouterr().out)["tables"]}
    assert tables == {"rollouts", "turns"}


def test_calls_that_a_tool_answered_are_counted_for_the_bonus(player: Player) -> None:
    graders = [{"grader": "exact_match"}]
    says = [["[1+1]", "[2**]", "[3]", "7"], ["7"]]
    made, _ = player.play(lambda group, sample: says[sample], {"name": "calculator"}, graders)
    rows = read_table(made, Rollouts).filter(pl.col("group_id") == rows_of(made)[0]["group_id"])
    turns = read_table(made, Turns)
    assert calls_of(rows, turns).to_list() == [2, 0] and calls_of(rows, None).to_list() == [0, 0]


@pytest.fixture
def thinker(player: Player, tmp_path: Path) -> Player:
    return Player(tmp_path / "thinker" / "store", player.config, THINKS)


ANEW = {"name": "games:Asks", "history": "rendered", "max_turns": 4}


def test_a_turn_sees_the_chat_as_its_template_writes_it_anew_and_is_a_row(thinker: Player) -> None:
    says = [["5+1=7", "8=8", "2-1=1"], ["1"]]
    made, engine = thinker.play(lambda group, sample: says[sample], ANEW)
    tokenizer = load_tokenizer(thinker.policy.path, trust_remote_code=False)
    asks = [ask for ask in engine.asked if ask.key == (0, 0, 0)]
    group = next(row["group_id"] for row in rows_of(made) if row["seed"] == asks[0].seed)
    rows = [row for row in rows_of(made) if row["group_id"] == group]
    assert [(row["sample_index"], row["finish_reason"], row["reward"]) for row in rows] == [
        (0, "continued", 0.5), (1, "continued", 0.5), (2, "stop", 0.5), (4, "stop", 1.0),
    ]  # fmt: skip
    chat = [{"role": "user", "content": f"{rows[0]['prompt_id'][1:]}+1"}]
    plain = lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # noqa: E731
    for row, ask, text, off in zip(rows[:3], asks, says[0], [6, 7, None], strict=True):
        anew = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids: list[int] = []
        for number, part in enumerate(anew.split("<eos> off")):  # what it says names a special token, and stays text
            ids += (plain("<eos> off") if number else []) + tokenizer(part, add_special_tokens=False)["input_ids"]
        drawn = [*tokenizer.encode(text), EOS]
        assert ask.prompt_token_ids == ids and ask.seed == row["seed"]
        assert row["prompt_token_ids"] + row["completion_token_ids"] == ids + drawn
        assert (row["action_mask"] or [True] * len(drawn)) == [False] * (len(ids) - len(row["prompt_token_ids"])) + [True] * len(
            drawn
        )
        chat += [{"role": "assistant", "content": text}, {"role": "user", "content": f"<eos> off by {off}"}]
    assert "5+1" not in tokenizer.decode(asks[1].prompt_token_ids) and rows[1]["prompt_token_ids"] == rows[0]["prompt_token_ids"]
    assert made.summary["completions"] == 4 and made.summary["reward_mean"] == 0.75 and made.summary["episodes"]["turns"] == 8
    assert audit(made.path).status == 0


def test_an_episode_of_several_rows_fails_ends_and_is_graded_as_one(thinker: Player) -> None:
    says = [["7", "8", "9", "7", "1"], ["7", "fail"]]
    made, _ = thinker.play(lambda group, sample: says[sample], {**ANEW, "max_failed_share": 0.5})
    rows = [(row["sample_index"], row["status"], row["finish_reason"], row["reward"]) for row in rows_of(made)][:6]
    assert rows[:4] == [(n, "truncated", "turns" if n == 3 else "continued", -1.0) for n in range(4)]
    assert [row[1:] for row in rows[4:]] == [("environment_error", "continued", None), ("environment_error", None, None)]
    assert made.summary["statuses"] == {"environment_error": 2, "truncated": 2}


def test_shards_of_several_rows_are_found_and_graded_again(thinker: Player) -> None:
    script = lambda group, sample: [["5+1=7", "1"], ["1"]][sample]  # noqa: E731
    made, _ = thinker.play(script, ANEW, [{"grader": "exact_match"}])
    reward = thinker.config.reward.model_validate({"components": [{"grader": "environment"}]})
    job = {"request": grade_request(made, reward).to_json(), "rollouts": str(made.path), "prompts": str(thinker.prompts.path)}
    graded = grade({"store": str(thinker.store.root), "reward": reward.model_dump(mode="json"), "jobs": [job]}, _silent())
    again = load_artifact(graded["artifacts"][0])
    assert [row["reward"] for row in rows_of(again)] == [0.75, 0.75, 1.0] * 2
    assert audit(again.path).status == 0
    path = made.path / "turns-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    set_aside(find_damage(made))
    mended, engine = thinker.play(script, ANEW, [{"grader": "exact_match"}])
    assert mended.id == made.id and {ask.key[1] for ask in engine.asked} == {1}


def test_a_template_that_begins_otherwise_is_refused(player: Player, tmp_path: Path) -> None:
    other = THINKS.replace("m.role[0] + ':'", "(m.role[0] if messages | length == 1 else 'x') + ':'")
    thinker = Player(tmp_path / "other" / "store", player.config, other)
    with pytest.raises(UserError, match=r"does not begin a chat that goes on with the prompt of its first turn"):
        thinker.play(lambda group, sample: ["7", "1"], ANEW)
