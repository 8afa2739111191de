"""Corrections of own completions: who is asked about what, what is made of the answers, and how a killed stage goes on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.algorithms import resolve
from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.common.errors import UserError
from pipeline.config.revise import ReviseConfig
from pipeline.revise.experts import as_the_own, check_revise
from pipeline.revise.weights import change_of
from pipeline.run.parts import Part
from pipeline.sources.tokenizer import load_tokenizer
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.train.layout import open_snapshot
from schemas import Pairs, Revisions, Rollouts, Shaped

BASE = Path(__file__).parents[3] / "data" / "base"
PATTERN = r"A:(-?[0-9]+)$"


def texts(revised: Artifact) -> dict[str, list[tuple[str, float, str]]]:
    """By prompt: text, reward and role of the rows of its groups, in order."""
    rows = read_table(revised, Rollouts).join(read_table(revised, Revisions), on=["group_id", "sample_index"])
    found: dict[str, list[tuple[str, float, str]]] = {}
    for row in rows.sort("group_id", "sample_index").iter_rows(named=True):
        found.setdefault(row["prompt_id"], []).append((row["completion_text"], row["reward"], row["role"]))
    return found


def test_what_is_wrong_is_corrected_and_preferred_and_what_is_solved_is_kept(revising: Any) -> None:
    revised = revising(pattern=PATTERN)
    assert texts(revised) == {
        "p0": [(" A:53", 0.0, "own"), (" A:56", 1.0, "revised")],
        "p1": [(" 7+5=12 A:11", 0.0, "own"), (" 7+5=12 A:12", 1.0, "revised")],
        "p2": [(" A:0", 1.0, "own")],
        "p3": [(" four", 0.0, "own")],
    }
    assert revised.kind == "revisions"
    assert [parent.role for parent in revised.manifest.content.parents] == ["rollouts", "policy", "prompts"]
    summary = {name: revised.summary[name] for name in ("asked", "said", "revised", "unchanged", "without_revision")}
    assert summary == {"asked": 3, "said": 2, "revised": 2, "unchanged": 0, "without_revision": 1}
    notes = read_table(revised, Revisions).drop_nulls("note")
    assert notes["note"].to_list() == ["no match of revise.pattern"]
    assert "1 of 3 completions have no revision" in revising.said


def test_tokens_that_a_revision_changes_weigh_more_on_both_sides(revising: Any, policy: Artifact) -> None:
    revised = revising(pattern=PATTERN, changed_weight=2.5)
    rows = read_table(revised, Rollouts).join(read_table(revised, Revisions), on=["group_id", "sample_index"])
    own, other = (
        rows.filter(pl.col("prompt_id") == "p0", pl.col("role") == role).row(0, named=True) for role in ("own", "revised")
    )
    tokenizer = load_tokenizer(policy.path, trust_remote_code=False)
    assert [tokenizer.decode(row["completion_token_ids"], skip_special_tokens=True) for row in (own, other)] == [" A:53", " A:56"]
    assert own["completion_token_ids"][-1] == other["completion_token_ids"][-1] == tokenizer.eos_token_id
    for row, theirs in ((own, other), (other, own)):
        same = [one == two for one, two in zip(row["completion_token_ids"], theirs["completion_token_ids"], strict=True)]
        assert row["token_weights"] == [1.0 if equal else 2.5 for equal in same]
        assert same.count(False) == 1
    assert other["change"] == pytest.approx(1 / len(own["completion_token_ids"]))
    assert other["change"] == pytest.approx(change_of(own["completion_token_ids"], other["completion_token_ids"]))


def test_nobody_drew_a_revision_so_it_has_no_behavior_logprobs(revising: Any) -> None:
    rows = read_table(revising(pattern=PATTERN), Rollouts).filter(pl.col("source") == "expert")
    assert rows["behavior_logprobs"].null_count() == len(rows) == 2
    assert set(rows["engine"]) == {f"revise pattern {PATTERN}"}
    assert set(rows["policy_id"]) == {"unknown"}
    assert set(rows["temperature"]) == {1.0}  # scored as the own ones are


def test_every_own_completion_has_a_group_to_itself(revising: Any) -> None:
    rows = read_table(revising(pattern=PATTERN, samples=2, solved_at=None), Rollouts)
    assert rows.group_by("group_id").len().sort("group_id")["len"].to_list() == [2, 1, 2, 1, 1, 2, 1, 1]
    pairs = RewardPairs(strategy="all").pairs(rows)
    assert [group.partition("@")[0] for group in pairs["group_id"]] == ["p0/0", "p1/0", "p2/1"]


def test_reference_answers_are_preferred_too_where_they_are_another_text(revising: Any) -> None:
    found = texts(revising(pattern=PATTERN, reference=" A:{answer}"))
    assert found["p0"] == [(" A:53", 0.0, "own"), (" A:56", 1.0, "revised")]
    assert found["p1"][2] == (" A:12", 1.0, "reference")
    assert found["p3"] == [(" four", 0.0, "own"), (" A:4", 1.0, "reference")]
    assert found["p2"] == [(" A:0", 1.0, "own")]  # right already


def test_what_is_written_anew_is_no_revision(revising: Any) -> None:
    revised = revising(pattern=PATTERN, most_change=0.1)
    assert [row[2] for row in texts(revised)["p0"]] == ["own"]
    assert [row[2] for row in texts(revised)["p1"]] == ["own", "revised"]  # the longer one changes in a smaller part
    assert "differs from the own completion in 17% of the tokens" in read_table(revised, Revisions)["note"].to_list()


def test_a_text_that_spells_special_tokens_is_no_revision(
    revising: Any, policy: Artifact, tmp_path: Path, monkeypatch: Any
) -> None:
    end = load_tokenizer(policy.path, trust_remote_code=False).eos_token
    source = f"def ends(completion, answer, prompt):\n    return completion + {end!r} + 'more'\n"
    (tmp_path / "ending_expert.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    revised = revising(function="ending_expert:ends", most_change=1.0)
    assert {row[2] for rows in texts(revised).values() for row in rows} == {"own"}
    assert set(read_table(revised, Revisions)["note"].drop_nulls()) == {"has special tokens of the policy in it"}


def test_an_expert_that_changes_nothing_says_that_it_is_right(revising: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "same_expert.py").write_text("def same(completion, answer, prompt):\n    return completion\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    revised = revising(function="same_expert:same", reference=" A:{answer}")
    assert all(rows == [(rows[0][0], 1.0, "own")] for rows in texts(revised).values())
    assert revised.summary["unchanged"] == 3


def test_a_function_sees_the_prompt_and_its_failures_are_told_of_their_rows(
    revising: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    source = """
def mend(completion, answer, prompt, mark="A:"):
    if prompt["metadata"]["level"] != 2 or "four" in completion:
        raise ValueError("not\\na sum")
    if "7+5" in prompt["question"]:
        return None
    return completion.rpartition(mark)[0] + mark + answer
"""
    (tmp_path / "sum_expert.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    revised = revising(function="sum_expert:mend", args={"mark": "A:"})
    assert texts(revised)["p0"][1] == (" A:56", 1.0, "revised")
    assert set(read_table(revised, Revisions)["note"].drop_nulls()) == {"returned None", "ValueError: not a sum"}
    assert revised.recipe["by"]["function"] == "sum_expert:mend"
    assert len(revised.recipe["by"]["source"]) == 64


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_is_joined_by_prompt_and_completion(revising: Any, tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(
        {"prompt_id": ["p0", "p1", "p0"], "completion": [" A:53", " other", " A:9"], "revised": [" A:56", " A:12", " A:56"]}
    )
    file = tmp_path / f"mended[1].{suffix}"  # no pattern
    getattr(frame, {"jsonl": "write_ndjson", "csv": "write_csv", "parquet": "write_parquet"}[suffix])(file)
    revised = revising(file=str(file))
    assert texts(revised)["p0"] == [(" A:53", 0.0, "own"), (" A:56", 1.0, "revised")]
    assert texts(revised)["p1"] == [(" 7+5=12 A:11", 0.0, "own")]
    assert revised.summary["without_revision"] == 2


class Corrector(ThreadingHTTPServer):
    """An OpenAI-compatible server that corrects."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.asked: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say({"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                self._say({"choices": [{"message": {"content": answer(body["messages"][-1]["content"])}}]})

            def _say(self, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def corrector() -> Iterator[Corrector]:
    def answer(asked: str) -> str:
        return asked.partition(" is ")[0] + "\n"  # without the space that completions here begin with

    server = Corrector(answer)
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_about_each_and_keeps_the_white_space(revising: Any, corrector: Corrector) -> None:
    template = "A:{answer} is right, and this is not: {completion}"
    revised = revising(url=corrector.url, model="tiny", template=template, system="mend", most_change=0.8)
    assert texts(revised)["p0"] == [(" A:53", 0.0, "own"), (" A:56", 1.0, "revised")]
    assert len(corrector.asked) == 3  # not about what is solved
    assert {body["temperature"] for body in corrector.asked} == {0.0}
    assert corrector.asked[0]["messages"][0] == {"role": "system", "content": "mend"}
    assert corrector.url not in json.dumps(revised.recipe)  # where it is decides nothing


@pytest.mark.slow
def test_a_model_is_asked_greedily_and_its_answers_are_those_of_transformers(revising: Any, store: Store) -> None:
    with store.work(Request("checkpoint", "import/1", {"of": "whole"})) as work:
        assert isinstance(work, Work)
        for path in BASE.glob("*.[js]*"):
            shutil.copyfile(path, work.path / path.name)
        reviser = work.finish({"iteration": 0})
    revised = revising(model="whole", reviser=reviser, template="Q:{question}={completion},", max_tokens=40, most_change=1.0)
    rows = read_table(revised, Revisions).join(read_table(revised, Rollouts), on=["group_id", "sample_index"])
    rows = rows.filter(pl.col("role") == "own", pl.col("reward") == 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    for prompt, own, said, note in rows.select("prompt_text", "completion_text", "said", "note").iter_rows():
        asked = tokenizer(f"{prompt}{own},", return_tensors="pt", return_token_type_ids=False)
        drawn = model.generate(**asked, do_sample=False, max_new_tokens=40)[0, asked["input_ids"].shape[1] :].tolist()
        if tokenizer.eos_token_id in drawn:
            assert said == as_the_own(tokenizer.decode(drawn, skip_special_tokens=True), own)
        else:
            assert said is None and note.startswith("cut after 40 tokens; revise.max_tokens is 40")
    assert len(rows) == 3 and revised.manifest.content.parents[-1].role == "reviser"


def test_an_expert_without_a_single_text_is_an_error(revising: Any) -> None:
    with pytest.raises(UserError, match=r"none of the 3 completions .* came back with a text\. The first: no match"):
        revising(pattern="B:(.*)")


def test_a_killed_stage_goes_on_after_the_last_whole_file(revising: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = revising(pattern=PATTERN)
    other, write, count = Store(tmp_path / "other"), Work.write_table, [0]

    def dies(self: Work, name: str, *args: Any) -> Any:
        count[0] += 1
        if count[0] == 4:  # between the second file's weights and its rows
            raise KeyboardInterrupt
        return write(self, name, *args)

    monkeypatch.setattr(Work, "write_table", dies)
    with pytest.raises(KeyboardInterrupt):
        revising(into=other, pattern=PATTERN)
    asked: list[int] = []
    monkeypatch.setattr(Work, "write_table", write)
    from pipeline.revise import experts

    revise = experts.ByPattern.revise
    monkeypatch.setattr(experts.ByPattern, "revise", lambda self, items: asked.append(len(items)) or revise(self, items))
    again = revising(into=other, pattern=PATTERN)
    assert again.id == whole.id
    assert asked == [1]  # the second file's alone


def test_training_reads_the_weights_and_what_is_not_revised_weighs_one(
    revising: Any, rollouts: Artifact, store: Store, tmp_path: Path
) -> None:
    revised = revising(pattern=PATTERN)

    def shaped(of: Artifact) -> Artifact:
        rows = [read_table(of, Rollouts).filter(pl.col("prompt_id").is_in(names)) for names in (["p0", "p1"], ["p2", "p3"])]
        with store.work(Request("shaped", "shape/2", {}, (of.as_parent("rollouts"),))) as work:
            assert isinstance(work, Work)
            for number, part in enumerate(rows):
                table = part.select(
                    "group_id",
                    "sample_index",
                    advantage=pl.lit(1.0, pl.Float32),
                    weight=pl.lit(1.0, pl.Float32),
                    keep=pl.lit(True),
                    drop_reason=pl.lit(None, pl.String),
                )
                work.write_table(f"part-{number:05d}.parquet", table, Shaped)
                work.write_table(f"pairs-{number:05d}.parquet", RewardPairs().pairs(part), Pairs)
            return work.finish({})

    parts = [Part(revised, shaped(revised)), Part(rollouts, shaped(rollouts))]
    snapshot = open_snapshot(tmp_path / "weighed", parts, resolve("opa-dpo"), "nobody")
    stored = {
        (row["group_id"], row["sample_index"]): row["token_weights"]
        for row in read_table(revised, Revisions).iter_rows(named=True)
    }
    seen = {
        (c.group_id, c.sample_index): c.token_weight for group in range(len(snapshot.groups)) for c in snapshot[group].completions
    }
    assert {key: value.tolist() for key, value in seen.items() if key in stored} == stored
    assert all(value.tolist() == [1.0] * len(value) for key, value in seen.items() if key not in stored)
    plain = open_snapshot(tmp_path / "plain", parts, resolve("dpo"), "nobody")
    assert plain[0].completions[0].token_weight is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pattern": "A:(", "samples": 1}, r"revise\.pattern: 'A:\(' is not a regular expression"),
        ({"function": "nowhere_at_all:f"}, r"revise\.function: no module 'nowhere_at_all'"),
        ({"file": "none.jsonl"}, r"revise\.file: .*none\.jsonl: cannot be read"),
        ({"file": "none.txt"}, r"expected a name that ends with \.jsonl"),
        ({"url": "ftp://x", "model": "m"}, r"revise\.url: 'ftp://x' is no address"),
        ({"url": "http://x/v1", "model": "m", "api_key_env": "SURELY_NOT_SET"}, r"has no variable SURELY_NOT_SET"),
    ],
)
def test_an_expert_that_cannot_be_asked_is_told_before_any_work(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_revise(ReviseConfig.model_validate(settings))


def test_two_corrections_of_one_completion_contradict_each_other(tmp_path: Path) -> None:
    rows = {"prompt_id": ["a", "a"], "completion": ["x", "x"], "revised": ["y", "z"]}
    pl.DataFrame(rows).write_ndjson(tmp_path / "twice.jsonl")
    with pytest.raises(UserError, match=r"twice\.jsonl, row 2: a second correction of a completion of prompt a"):
        check_revise(ReviseConfig(file=str(tmp_path / "twice.jsonl")))
    pl.DataFrame({**rows, "revised": ["y", "y"]}).write_ndjson(tmp_path / "same.jsonl")
    check_revise(ReviseConfig(file=str(tmp_path / "same.jsonl")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pattern": "a", "file": "b"}, "both say who revises"),
        ({"url": "http://x/v1"}, "needs `model`"),
        ({"pattern": "a", "args": {"b": 1}}, "args: are those of `function`"),
        ({"pattern": "a", "kept_weight": 0, "changed_weight": 0}, "nothing would be learned"),
        ({"pattern": "a", "template": "x"}, r"no \{completion\}"),
        ({"pattern": "a", "reference": "x"}, r"no \{answer\}"),
        ({"pattern": "a", "most_change": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReviseConfig.model_validate(settings)
