"""A judge behind a small HTTP server: what it is asked, what its answers are worth, and what happens when it fails."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.graders.judge import judge
from pipeline.rewards.items import RewardItem
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import places_of, recipe_of, resolve
from tests.pipeline.rewards.conftest import Server, said

ITEM = RewardItem("so 4 {answer}", "4", {"prompt_id": "p0", "question": "2+2?", "prompt_text": "Q:2+2="}, "p0@01234567", 0)
TEMPLATE = "{question}|{completion}|{answer}"
SETTINGS: dict[str, Any] = {"model": "tiny", "template": TEMPLATE, "pattern": "Score: ([0-9.]+)", "divide_by": 10.0}


def test_a_judge_is_asked_greedily_and_its_answer_is_kept(server: Server) -> None:
    (score,) = judge(url=server.url, **SETTINGS, system="Be fair.").grade([ITEM])
    assert (score.score, score.error, score.remark) == (0.7, None, "Score: 7")
    path, body, key = server.asked[0]
    assert path == "/v1/chat/completions" and key is None
    assert body == {
        "model": "tiny",
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 512,
        "messages": [
            {"role": "system", "content": "Be fair."},
            {"role": "user", "content": "2+2?|so 4 {answer}|4"},
        ],
    }


def test_a_judge_may_be_given_bare_text(server: Server) -> None:
    server.answer = lambda body: (200, {"choices": [{"text": f"{body['prompt']} Score: 1"}]})
    (score,) = judge(url=server.url, **SETTINGS, api="completions").grade([ITEM])
    assert score.score == 0.1 and server.asked[0][0] == "/v1/completions"


def test_the_last_score_counts_and_words_may_be_scores(server: Server) -> None:
    server.answer = lambda body: (200, said("Score: 2, no: Score: 9"))
    assert judge(url=server.url, **SETTINGS).grade([ITEM])[0].score == 0.9
    server.answer = lambda body: (200, said("Verdict: right"))
    settings = {**SETTINGS, "pattern": "Verdict: (.+)", "divide_by": 1.0, "values": {"right": 1, "wrong": 0}}
    assert judge(url=server.url, **settings).grade([ITEM])[0].score == 1.0


def test_an_answer_without_a_score_is_an_error_that_shows_it(server: Server) -> None:
    server.answer = lambda body: (200, said("I would\nrather not"))
    (score,) = judge(url=server.url, **SETTINGS).grade([ITEM])
    assert score.error == "no match of 'Score: ([0-9.]+)'; the judge answered: I would rather not"
    assert score.remark == "I would\nrather not"


def test_what_may_pass_is_tried_again_and_what_may_not_is_told(server: Server) -> None:
    replies = iter([(503, {}), (429, {}), (200, b"{half"), (200, said("Score: 5"))])
    server.answer = lambda body: next(replies)
    assert judge(url=server.url, **SETTINGS).grade([ITEM])[0].score == 0.5
    server.answer = lambda body: (500, {"error": "overloaded"})
    (score,) = judge(url=server.url, **SETTINGS, retries=1).grade([ITEM])
    assert score.error == 'no answer after 2 attempts: HTTP 500 {"error": "overloaded"}'
    server.asked.clear()
    server.answer = lambda body: (400, {"error": "too long"})
    (score,) = judge(url=server.url, **SETTINGS).grade([ITEM])
    assert score.error == 'HTTP 400 {"error": "too long"}' and len(server.asked) == 1


def test_a_silent_judge_is_given_up(server: Server) -> None:
    released = threading.Event()
    server.answer = lambda body: (200, said("Score: 5" if released.wait(20) else "late"))
    (score,) = judge(url=server.url, **SETTINGS, timeout=1.0, retries=0).grade([ITEM])
    released.set()
    assert score.error == "no answer after 1 attempt: timed out"


def test_an_error_whose_text_does_not_come_is_tried_again(server: Server) -> None:
    """The server names a length and sends less: the judge waits for the rest until its time is over."""
    replies = iter([(503, b"busy"), (200, said("Score: 5"))])
    server.answer = lambda body: next(replies)
    server.withheld = 100
    assert judge(url=server.url, **SETTINGS, timeout=1.0, retries=1).grade([ITEM])[0].score == 0.5


def test_half_a_surrogate_pair_in_an_answer_can_be_kept(server: Server) -> None:
    server.answer = lambda body: (200, said("Score: 7 \ud83d"))
    (score,) = judge(url=server.url, **SETTINGS).grade([ITEM])
    assert (score.score, score.remark) == (0.7, "Score: 7 ?")


def test_the_time_limit_has_room_for_the_longest_pauses(server: Server) -> None:
    """A server may ask for 30 s before each retry."""
    assert judge(url=server.url, **SETTINGS, timeout=2.0, retries=4).seconds_per_item == 5 * 2.0 + 4 * 30.0 + 1


def test_several_are_asked_at_once_and_answers_stay_in_order(server: Server) -> None:
    together = threading.Barrier(4, timeout=20)

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        together.wait()
        return 200, said("Score: " + body["messages"][0]["content"].split("|")[1])

    server.answer = answer
    items = [RewardItem(str(n), "4", ITEM.prompt, "g", n) for n in range(8)]
    scores = judge(url=server.url, **SETTINGS, concurrency=4).grade(items)
    assert [score.score for score in scores] == [n / 10 for n in range(8)]


def test_the_key_reaches_the_server_and_nothing_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    server.answer = lambda body: (401, {"error": "bad key sk-very-secret"})
    component = RewardComponent(grader="judge", args={"url": server.url, **SETTINGS, "api_key_env": "JUDGE_KEY", "retries": 0})
    with RewardPool(RewardConfig(components=(component,))) as pool:
        (result,) = pool.submit([ITEM]).result(timeout=60)
    assert server.asked[0][2] == "Bearer sk-very-secret"
    assert result.error == 'reward_judge: HTTP 401 {"error": "bad key ***"}'
    recorded = json.dumps([recipe_of(component), places_of([component])])
    assert "sk-very-secret" not in recorded
    assert set(recipe_of(component)["args"]) == set(SETTINGS)


@pytest.mark.parametrize("around", ["\r", "\n", " "])
def test_space_around_a_key_is_no_part_of_it(server: Server, monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"sk-very-secret{around}")
    judge(url=server.url, **SETTINGS, api_key_env="JUDGE_KEY").grade([ITEM])
    assert server.asked[0][2] == "Bearer sk-very-secret"


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very\nsecret")
    with pytest.raises(UserError, match="JUDGE_KEY holds characters that no HTTP header can") as refusal:
        judge(url=server.url, **SETTINGS, api_key_env="JUDGE_KEY")
    assert "secret" not in str(refusal.value)


def test_no_redirect_is_followed(server: Server) -> None:
    server.answer, server.headers = (lambda body: (307, {})), {"Location": "http://127.0.0.1:9/v1"}
    (score,) = judge(url=server.url, **SETTINGS).grade([ITEM])
    assert score.error is not None and score.error.startswith("HTTP 307")


def test_a_server_that_cannot_be_used_is_an_answer_before_grading(server: Server) -> None:
    server.models = (200, {"data": [{"id": "other"}]})
    with pytest.raises(UserError, match="has no model 'tiny'; it has other"):
        judge(url=server.url, **SETTINGS)
    server.models = (401, {})
    with pytest.raises(UserError, match="refuses access"):
        judge(url=server.url, **SETTINGS)
    server.models = (404, {})
    judge(url=server.url, **SETTINGS)
    with pytest.raises(UserError, match=r"no server answers .*python -m vllm\.entrypoints\.openai\.api_server --model MODEL"):
        judge(url="http://127.0.0.1:9/v1", **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8000"}, "args.url: 'localhost:8000' is no address; expected http://host:port/v1"),
        ({"url": "http://user:pw@host/v1"}, "args.url: holds a password"),
        ({"url": "http://host/v1?key=sk-1"}, "args.url: holds a query or a fragment; expected http://host:port/v1"),
        ({"template": "{question}"}, r"args.template: has no {completion} in it"),
        ({"pattern": "("}, r"args.pattern: '\(' is not a regular expression"),
        ({"api_key_env": "sk-123"}, "args.api_key_env: expected the name of an environment variable, such as JUDGE_API_KEY"),
        ({"api_key_env": "NOT_SET_HERE"}, "the environment has no variable NOT_SET_HERE"),
        ({"divide_by": 0.0}, "args.divide_by: 0"),
        ({"retries": -1}, "args.retries: -1, expected at least 0"),
        ({"api": "responses"}, "args.api: expected 'chat' or 'completions'"),
    ],
)
def test_wrong_args_are_refused_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    args = {"url": "http://localhost:8000/v1", **SETTINGS, **changes}
    with pytest.raises(UserError, match=message):
        resolve(RewardComponent(grader="judge", args=args))
