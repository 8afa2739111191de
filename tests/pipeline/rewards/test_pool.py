"""What a pool promises as long as graders behave: order, exact texts, weights, equal results, an orderly close."""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.common.lines import decode, encode, one_line
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.items import weighted
from pipeline.rewards.pool import RewardItem, RewardPool

Own = Callable[[str], str]
EXACT = RewardComponent(grader="exact_match", name="exact")


def texts(count: int) -> list[RewardItem]:
    return [RewardItem(str(i), str(i if i % 3 else -1), {"prompt_id": f"p{i}"}) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_the_order_of_the_items(own: Own, workers: int) -> None:
    module = own("""
        import time

        def value(completion, answer, prompt):
            time.sleep(0.02 if int(completion) % 50 == 0 else 0)
            return int(completion)
    """)
    config = RewardConfig(components=(RewardComponent(grader=f"{module}:value"),), workers=workers)
    with RewardPool(config) as pool:
        futures = [pool.submit(texts(count)) for count in (500, 1, 0, 130)]
        assert [[r.reward for r in f.result(timeout=60)] for f in futures] == [
            [float(i) for i in range(count)] for count in (500, 1, 0, 130)
        ]


def test_the_reward_is_the_weighted_sum_and_each_score_is_kept() -> None:
    components = (
        RewardComponent(grader="exact_match", name="exact", weight=2.0),
        RewardComponent(grader="regex", name="form", weight=-0.5, args={"pattern": "^<", "compare": False}),
    )
    with RewardPool(RewardConfig(components=components)) as pool:
        plain, marked = pool.submit([RewardItem("7", "7", {}), RewardItem("<7", "7", {})]).result(timeout=60)
    assert (plain.reward, plain.components, plain.error) == (2.0, {"reward_exact": 1.0, "reward_form": 0.0}, None)
    assert (marked.reward, marked.components) == (-0.5, {"reward_exact": 0.0, "reward_form": 1.0})


def test_weights_that_add_up_to_one_give_a_reward_of_one() -> None:
    """Added one after the other, 0.7, 0.2 and 0.1 stay below 1, and no completion would count as solved."""
    assert weighted({"a": 1.0, "b": 1.0, "c": 1.0}, [0.7, 0.2, 0.1], []).reward == 1.0


def test_one_failing_component_leaves_the_others_scores_and_no_reward(own: Own) -> None:
    module = own("""
        def bad(completion, answer, prompt):
            raise ValueError("two\\nlines \\x1b[31m\\ud800")
    """)
    components = (RewardComponent(grader=f"{module}:bad"), EXACT)
    with RewardPool(RewardConfig(components=components)) as pool:
        (result,) = pool.submit([RewardItem("7", "7", {})]).result(timeout=60)
    assert result.reward is None
    assert result.components == {"reward_bad": None, "reward_exact": 1.0}
    assert result.error == r"reward_bad: ValueError: two lines \x1b[31m\ud800"


STRANGE = [
    "",
    "\0",
    "a\0b\n\r\u2028\u2029\x85",
    "\ud800",
    "\ud83d\ude00",  # two lone halves, which are not the one character U+1F600
    "\U0001f600 日本語 \x7f\x1b",
    '"\\',
    "x" * 1_000_000,
    "\ud83d" * 1_000_000,
]


def test_any_text_arrives_as_it_is(own: Own) -> None:
    module = own("""
        import json
        from pathlib import Path

        STRANGE = json.loads(Path("strange.json").read_text())

        def same(completion, answer, prompt):
            i = prompt["place"]
            wanted = "".join(map(chr, STRANGE[i][0])) * STRANGE[i][1]
            return completion == wanted and answer == wanted and prompt["question"] == wanted
    """)
    pieces = [[list(map(ord, text if len(text) < 99 else text[0])), 1 if len(text) < 99 else len(text)] for text in STRANGE]
    Path("strange.json").write_text(str(pieces))
    items = [RewardItem(text, text, {"place": i, "question": text}) for i, text in enumerate(STRANGE)]
    with RewardPool(RewardConfig(components=(RewardComponent(grader=f"{module}:same"),))) as pool:
        results = pool.submit(items).result(timeout=60)
    assert [r.error for r in results] == [None] * len(STRANGE)
    assert [r.reward for r in results] == [1.0] * len(STRANGE)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(st.characters(codec=None)))
def test_the_protocol_keeps_every_text_on_one_line(text: str) -> None:
    line = encode([text])
    assert decode(line) == [text]
    assert line.count(b"\n") == 1
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) <= 400
    shown.encode()


def test_columns_of_a_prompt_arrive_in_json_form(own: Own) -> None:
    module = own("""
        WANTED = {"day": "2024-02-29", "price": "1.50", "vector": [1.0, 2.0], "n": 3, "nested": {"a": [1, None]}}

        def same(completion, answer, prompt):
            return prompt == WANTED

        def spoil(completion, answer, prompt):
            prompt["nested"]["a"].clear()
            return 0
    """)
    row = {
        "day": datetime.date(2024, 2, 29),
        "price": Decimal("1.50"),
        "vector": np.array([1.0, 2.0]),
        "n": np.int64(3),
        "nested": {"a": (1, None)},
    }
    components = tuple(RewardComponent(grader=f"{module}:{name}") for name in ("spoil", "same"))
    with RewardPool(RewardConfig(components=components)) as pool:
        good, bad = pool.submit([RewardItem("", None, row), RewardItem("", None, {"x": object()})]).result(timeout=60)
    assert (good.reward, good.error) == (1.0, None)
    assert bad.reward is None
    assert bad.error == ("reward_spoil: the item cannot be passed to a grader: a value of type object has no JSON form")


def test_equal_items_get_equal_scores_whatever_the_number_of_workers(own: Own) -> None:
    module = own("""
        import random

        def draw(completion, answer, prompt):
            return random.random() + len({"a", "b", completion}) + sum(map(ord, next(iter({"x", "y", "z"}))))
    """)
    component = RewardComponent(grader=f"{module}:draw")
    rewards = []
    for workers in (1, 3):
        with RewardPool(RewardConfig(components=(component,), workers=workers)) as pool:
            rewards.append([r.reward for r in pool.submit(texts(60)).result(timeout=60)])
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0])) == 60


def test_a_worker_sees_no_secret_and_one_thread(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    module = own("""
        import os, sys, locale

        def clean(completion, answer, prompt):
            assert "HF_TOKEN" not in os.environ and "AWS_SECRET_ACCESS_KEY" not in os.environ, sorted(os.environ)
            assert os.environ["OMP_NUM_THREADS"] == "1"
            assert sys.stdin.read() == ""
            return 1
    """)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with RewardPool(RewardConfig(components=(RewardComponent(grader=f"{module}:clean"),))) as pool:
        (result,) = pool.submit(texts(1)).result(timeout=60)
    assert (result.reward, result.error) == (1.0, None)


def test_a_folder_of_the_users_named_as_our_package_does_no_harm(own: Own, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('not ours')")
    (tmp_path / "json.py").write_text("raise RuntimeError('not ours')")
    module = own("def one(completion, answer, prompt): return 1")
    with RewardPool(RewardConfig(components=(RewardComponent(grader=f"{module}:one"),))) as pool:
        assert [r.reward for r in pool.submit(texts(1)).result(timeout=60)] == [1.0]


SLOW = "import time\ndef slow(completion, answer, prompt):\n    time.sleep(30)\n    return 1\n"


def test_closing_cancels_what_is_outstanding_at_once(own: Own) -> None:
    component = RewardComponent(grader=f"{own(SLOW)}:slow")
    with RewardPool(RewardConfig(components=(component,), workers=2, timeout_seconds=60)) as pool:
        futures = [pool.submit(texts(10)) for _ in range(3)]
        waiter = threading.Thread(target=wait, args=(futures,))
        waiter.start()
        time.sleep(0.2)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    waiter.join(timeout=5)
    assert not waiter.is_alive()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    pool.close()
    with pytest.raises(RuntimeError, match="not open"):
        pool.submit(texts(1))


def test_an_exception_in_the_block_closes_the_pool(own: Own) -> None:
    component = RewardComponent(grader=f"{own(SLOW)}:slow")
    with pytest.raises(KeyError), RewardPool(RewardConfig(components=(component,))) as pool:
        future = pool.submit(texts(10))
        raise KeyError
    assert future.cancelled()


def test_a_cancelled_future_does_not_hold_up_the_next(own: Own) -> None:
    module = own("import time\ndef nap(completion, answer, prompt):\n    time.sleep(0.02)\n    return 1\n")
    with RewardPool(RewardConfig(components=(RewardComponent(grader=f"{module}:nap"),))) as pool:
        first, second = pool.submit(texts(2000)), pool.submit(texts(5))
        assert first.cancel()
        assert [r.reward for r in second.result(timeout=20)] == [1.0] * 5


def test_a_pool_leaves_no_thread_and_no_open_file() -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = files(), threading.active_count()
    for _ in range(3):
        with RewardPool(RewardConfig(components=(EXACT,), workers=2)) as pool:
            pool.submit(texts(10)).result(timeout=60)
    assert (files(), threading.active_count()) == before


def test_a_pool_is_not_usable_before_it_is_entered_nor_twice() -> None:
    pool = RewardPool(RewardConfig(components=(EXACT,)))
    with pytest.raises(RuntimeError, match="not open"):
        pool.submit(texts(1))
    with pool, pytest.raises(RuntimeError, match="once"):
        pool.__enter__()
