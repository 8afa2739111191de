"""The page over HTTP: who is answered, what is found, and that nothing a model wrote does anything."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.look.show.subject import find_subject
from pipeline.look.view.parts import parts_of
from pipeline.look.view.pool import RowPool
from pipeline.look.view.shading import legend, shaded
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts, Scores

Served = Callable[..., Any]


def samples(page: str) -> list[str]:
    """The completions of a list, by the prompt's id and their number."""
    return re.findall(r"<code>([^<]+)</code></a><span.*?completion (\d)", page, re.DOTALL)


def test_only_the_address_with_the_token_is_answered(finished: Path, served: Served) -> None:
    page = served(finished)
    token = page.server.token
    assert page.ask(f"/{token}/")[0] == 200
    for path in ("/", "/favicon.ico", f"/{token[:-1]}/", f"/{token}x/", f"/x/{token}/", "//", f"/{token}/etc/passwd"):
        status, text, _ = page.ask(path)
        assert status == 404 and token not in text, path
    assert page.ask(f"/{token}")[2]["Location"] == f"/{token}/"
    assert len(token) >= 24 and served(finished).server.token != token


def test_a_name_that_was_made_to_lead_here_is_refused(finished: Path, served: Served) -> None:
    page = served(finished)
    address = f"/{page.server.token}/"
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example:1", ""):
        assert page.ask(address, headers={"Host": host})[0] == 421
    assert page.ask(address, headers={"Host": "localhost:9999"})[0] == 200  # a forwarded port
    assert page.server.server_address[0] == "127.0.0.1"


def test_it_is_only_read(finished: Path, served: Served) -> None:
    page = served(finished)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert page.ask(f"/{page.server.token}/", method)[0] == 501
    page.show(q="reward>0", sort="-tokens")
    assert page.ask(f"/{page.server.token}/", "HEAD")[1] == ""
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_pages_policy_lets_nothing_in(finished: Path, served: Served) -> None:
    page = served(finished)
    for path in (f"/{page.server.token}/", "/nothing"):
        headers = page.ask(path)[2]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-") and "script" not in policy and "unsafe" not in policy
        assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
        assert headers["Cache-Control"] == "no-store"
    text = page.show()
    assert "<script" not in text and "http" not in text and " style=" not in text


def test_a_run_is_listed_in_the_order_in_which_it_is_stored(finished: Path, served: Served) -> None:
    text = served(finished).show()
    assert "1 to 12 of <strong>12</strong>" in text  # four trained on, and four held out, of two checkpoints
    assert samples(text)[:4] == [("train-0", "0"), ("train-0", "1"), ("train-1", "0"), ("train-1", "1")]
    assert "rollouts, iteration 0" in text and "sampled, iteration 1" in text


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({"q": "set=rollouts reward=1"}, [("train-0", "0"), ("train-1", "0")]),
        ({"q": "advantage<0 status=ok"}, [("train-0", "1")]),
        ({"q": "words set=rollouts"}, [("train-0", "1")]),
        ({"q": "iteration=1 prompt_id=held-1", "sort": "reward"}, [("held-1", "1"), ("held-1", "0")]),
        ({"q": "set=rollouts", "sort": "-advantage"}, [("train-0", "0"), ("train-1", "0"), ("train-0", "1"), ("train-1", "1")]),
        ({"q": "tokens>9 set=rollouts"}, [("train-1", "1")]),
        ({"q": "logprob<-0.9 reward_exact_match=0"}, [("held-0", "1"), ("held-1", "1")]),
    ],
    ids=str,
)
def test_what_a_filter_finds_has_an_address(finished: Path, served: Served, query: dict[str, str], rows: list[Any]) -> None:
    assert samples(served(finished).show(**query)) == rows


def test_a_filter_that_is_wrong_is_told_on_the_page_and_stays_there(finished: Path, served: Served) -> None:
    page = served(finished)
    status, text, _ = page.ask(f"/{page.server.token}/?q=rewards%3E%3Cb")
    assert status == 400
    assert "there is no such column; did you mean reward?" in text and 'value="rewards&gt;&lt;b"' in text
    for query in ("page=0", "page=-1", "page=1e9", "page=99999999999999999999", "sort=nothing", "q=%ff"):
        assert page.ask(f"/{page.server.token}/?{query}")[0] == 400, query


def test_a_group_is_side_by_side_with_its_tokens_shaded(finished: Path, served: Served) -> None:
    page = served(finished)
    (address,) = re.findall(r'"(group\?of=\w+&amp;group=train-0%40\w+)">completion 1', page.show())
    status, text, _ = page.ask(f"/{page.server.token}/{html.unescape(address)}")
    assert status == 200
    assert text.count("<article") == 2 and "Reference answer: <code>1</code>" in text


def test_tokens_are_shaded_by_logprob_advantage_and_ratio(finished: Path) -> None:
    store = Store(finished / "artifacts")
    part = parts_of([str(finished)])[0]
    scored(store, part.rollouts, -1.0)
    part = next(one for one in parts_of([str(store.root)]) if one.rollouts.id == part.rollouts.id)
    pool = RowPool([part])
    row = pool.group(0, "train-0@01234567")[1]
    (role,) = part.scores
    by_logprob, by_advantage, by_ratio = (shaded(row, part, by) for by in ("logprob", "advantage", f"ratio {role}"))
    assert "".join(piece.text for piece in by_logprob.turns[0].pieces) == "two words"
    assert {piece.look for piece in by_logprob.turns[0].pieces} == {"p1"}  # exp(-0.5) = 0.61
    assert {piece.look for piece in by_advantage.turns[0].pieces} == {"down1"}  # -0.5
    assert {piece.look for piece in by_ratio.turns[0].pieces} == {"down2"}  # exp(-1.0 + 0.5) = 0.61
    assert by_ratio.turns[0].pieces[0].hint == "ratio 0.607: logprob -0.5 → -1"
    assert [piece.text for piece in legend("advantage")][2:4] == ["below 0", "above 0"]
    assert legend(f"ratio {role}")[0].text == "below 0.607" and legend("logprob")[-1].look == "p4"


def test_tokens_that_the_policy_did_not_draw_have_no_shade(finished: Path) -> None:
    part = parts_of([str(finished)])[0]
    row = RowPool([part]).group(0, "train-0@01234567")[1]
    drawn = [True] * 3 + [False] * 6
    looks = [piece.look for piece in shaded({**row, "action_mask": drawn}, part, "logprob").turns[0].pieces]
    assert looks == ["p1"] * 3 + ["given"] * 6
    missing = {**row, "behavior_logprobs": None, "advantage": None}
    assert {piece.look for by in ("logprob", "advantage", "none") for piece in shaded(missing, part, by).turns[0].pieces} == {""}


def test_an_episode_is_shown_turn_by_turn_and_only_drawn_tokens_are_shaded(played: tuple[Artifact, Artifact]) -> None:
    (part,) = parts_of([str(played[1].path)])
    rows = RowPool([part]).group(0, "train-0@01234567")
    said = shaded(rows[0], part, "logprob")
    assert [(turn.who, turn.label) for turn in said.turns] == [
        ("policy", "policy, reward 0.5"),
        ("tool", "tool calc ulator\x1b[31m, tool_error"),
        ("policy", "policy, reward 1"),
    ]
    result = rows[0]["completion_text"][5:-1]
    assert "<script>" in result and ["".join(piece.text for piece in turn.pieces) for turn in said.turns] == [
        "[1+0]",
        result,
        "1",
    ]
    assert [{piece.look for piece in turn.pieces} for turn in said.turns] == [{"p1"}, {"given"}, {"p1"}]
    assert said.turns[2].pieces[0].hint == "logprob -0.5, probability 0.607"
    assert [turn.label for turn in shaded(rows[1], part, "logprob").turns] == [None], "the other completion is no episode"


def test_an_episode_that_is_cut_says_how_many_turns_are_left(
    played: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    (part,) = parts_of([str(played[1].path)])
    (row, _) = RowPool([part]).group(0, "train-0@01234567")
    monkeypatch.setattr("pipeline.look.view.shading.MOST_TOKENS", 7)
    cut, whole = shaded(row, part, "logprob"), shaded(row, part, "logprob", whole=True)
    assert ["".join(piece.text for piece in turn.pieces) for turn in cut.turns] == ["[1+0]", row["completion_text"][5:7]]
    assert cut.is_cut and cut.note == f"the first 7 of {len(row['completion_token_ids'])} tokens; 1 more turn"
    assert len(whole.turns) == 3 and whole.note is None


def test_an_episode_without_a_tokenizer_names_its_speakers_below_the_text(played: tuple[Artifact, Artifact]) -> None:
    (part,) = parts_of([str(played[1].path)])
    (row, _) = RowPool([part]).group(0, "train-0@01234567")
    (turn,), note = shaded(row, replace(part, policy=None), "logprob").turns, shaded(row, replace(part, policy=None), "none").note
    assert turn.label is None and "".join(piece.text for piece in turn.pieces) == row["completion_text"]
    assert note and note.endswith(
        "spoke turn by turn: policy, reward 0.5; tool calc ulator\x1b[31m, tool_error; policy, reward 1"
    )


def test_what_a_tool_says_cannot_pass_for_a_turn(played: tuple[Artifact, Artifact], served: Served) -> None:
    text = served(played[1].path).show("group", of=played[1].id[:16], group="train-0@01234567")
    assert re.findall(r"<h3>(.*?)</h3>", text) == [
        "policy, reward 0.5",
        "tool calc ulator‹U+001B›[31m, tool_error",
        "policy, reward 1",
    ]
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    assert "<dt>turns</dt><dd>3</dd>" in text and text.count("<dt>turns</dt>") == 1


def test_two_iterations_of_a_prompt_stand_side_by_side(finished: Path, served: Served) -> None:
    one, other = [part.key for part in parts_of([str(finished)]) if part.set == "sampled"]
    text = served(finished).show("sides", prompt="held-0", a=one, b=other)
    assert text.count("<article") == 4
    assert text.index("sampled, iteration 0") < text.index("sampled, iteration 1")
    assert "2 completions, mean reward 0.5" in text


def test_what_models_write_is_text_and_nothing_else(tmp_path: Path, served: Served) -> None:
    hostile = [
        "<script>alert(1)</script>",
        "</style><img src=x onerror=alert(1)>",
        '"><a href="javascript:alert(1)">',
        "\u202etxt.exe\u2066",
        "\x1b[2J\x00\x07",
        "{{ 7 * 7 }}{% raw %}",
        "A" * 300_000,
        "\ud7ff\uffff\U000e0041",
    ]
    hostile_store(tmp_path / "store", hostile)
    page = served(tmp_path / "store")
    key = parts_of([str(tmp_path / "store")])[0].key
    shown = [page.show(), page.show("group", of=key, group="<g>&\"'"), page.show("sides", prompt="<p>", a=key, b=key)]
    shown += [page.show(q="<script>"), page.show(q='group_id="<g>&\\"\'"', sort="-tokens")]
    for text in shown:
        assert not re.search(r"<(script|img|a href=.javascript|iframe)", text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert "{{ 7 * 7 }}" in shown[1] and "&lt;script&gt;alert(1)" in shown[1] and "‹U+202E›txt.exe" in shown[1]
    assert len(shown[0]) < 80_000 and len(shown[1]) < 200_000  # what is very long is cut, and can be asked for
    assert len(page.show("group", of=key, group="<g>&\"'", whole=f"{key}-<g>&\"'-6")) > 300_000


def test_an_import_a_store_and_a_run_are_one_pool(finished: Path, tmp_path: Path) -> None:
    hostile_store(tmp_path / "other", ["x"])
    pool = RowPool(parts_of([str(finished), str(tmp_path / "other"), str(finished / "artifacts")]))
    assert pool.total == 13  # what lies in both places is there once
    rows, matched = pool.page("place=other", "", 0, 50)
    assert matched == 1 and rows[0]["part"].policy is None
    assert "tokens are not known" in (shaded(pool.group(3, "<g>&\"'")[0], pool.parts[3], "logprob").note or "")


def test_rows_far_apart_in_a_file_are_the_right_ones(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(200)]
    hostile_store(tmp_path / "store", texts)
    pool = RowPool(parts_of([str(tmp_path / "store")]))
    rows, matched = pool.page("", "-sample_index", 0, 50)
    assert matched == 200 and [row["completion_text"] for row in rows] == texts[:149:-1]
    rows, matched = pool.page("sample_index>=10 completion_text~9", "", 0, 50)
    assert [row["sample_index"] for row in rows] == [n for n in range(10, 200) if "9" in str(n)] and matched == len(rows)
    assert [row["completion_text"] for row in pool.page("", "", 190, 50)[0]] == texts[190:]


def test_places_without_completions_are_told(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="neither an artifact"):
        parts_of([str(tmp_path)])
    checkpoint = next(use.artifact for use in find_subject(str(finished)).uses if use.artifact.kind == "checkpoint")
    with pytest.raises(UserError, match="no completions there yet"):
        parts_of([checkpoint.url])


def test_a_port_that_is_taken_is_told(finished: Path, served: Served, rollbook: Callable[..., tuple[int, str, str]]) -> None:
    port = served(finished).server.server_port
    status, _, said = rollbook("view", finished, "--port", port)
    assert status == 2 and f"port {port}: Address already in use; choose another with --port" in said


def hostile_store(place: Path, texts: list[str]) -> Artifact:
    """Rollouts of one group that nobody's checkpoint drew, as of an import."""
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    same = {"group_id": "<g>&\"'", "prompt_id": "<p>", "prompt_text": "<b>bold</b>", "prompt_token_ids": [1], "reward": 0.0}
    same |= {"completion_token_ids": [1], "policy_id": "<model>", "policy_version": 0, "source": "import", "engine": "<e>"}
    same |= {"logprobs_mode": "unknown", "status": "reward_error", "error": "<script>", "answer": "<i>"}
    rows = [{**dict.fromkeys(types), **same, "sample_index": n, "completion_text": text} for n, text in enumerate(texts)]
    with Store(place).work(Request("rollouts", "import/1", {"texts": len(texts)})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        return work.finish({"completions": len(rows)})


def scored(store: Store, rollouts: Artifact, logprob: float) -> None:
    """Scores of all its tokens by some checkpoint."""
    keys = pl.concat([pl.read_parquet(path) for path in rollouts.tables("rollouts")])
    same = pl.col("behavior_logprobs").list.eval(pl.element() * 0 + logprob)
    frame = keys.select("group_id", "sample_index", logprobs=same)
    with store.work(Request("scores", "score/1", {}, (rollouts.as_parent("rollouts"),))) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", frame, Scores)
        work.finish({})
