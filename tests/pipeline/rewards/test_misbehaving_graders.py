"""Whatever a grader does, its item gets an error of one line, the next item is graded, and nothing stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import pipeline
from pipeline.common.errors import StageFailed, UserError
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool, RewardResult

Own = Callable[[str], str]
Grade = Callable[..., list[RewardResult]]
Gone = Callable[[str], list[str]]

ACTS = """
    import os, signal, subprocess, sys, threading, time

    KEPT = []

    def act(completion, answer, prompt, marker="none"):
        match completion:
            case "ok": return 1
            case "raise": raise KeyError("gone")
            case "raise nothing": raise RuntimeError
            case "raise unprintable":
                class Broken(Exception):
                    def __str__(self): raise ValueError
                raise Broken
            case "raise long": raise ValueError("word " * 100_000)
            case "sys.exit": sys.exit(3)
            case "os._exit": os._exit(3)
            case "os._exit 0": os._exit(0)
            case "kill": os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                import ctypes
                ctypes.string_at(0)
            case "hang": time.sleep(600)
            case "hang in C":
                import re
                re.match("(a+)+$", "a" * 64 + "b")
            case "ignore": 
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
                    signal.signal(number, signal.SIG_IGN)
                while True:
                    try: time.sleep(600)
                    except BaseException: pass
            case "stop": os.kill(os.getpid(), signal.SIGSTOP)
            case "kill group": os.killpg(0, signal.SIGKILL)
            case "memory": return len(bytearray(1 << 40))
            case "leak":
                KEPT.append(bytearray(48 << 20))
                return 1
            case "none": return None
            case "nan": return float("nan")
            case "infinity": return float("inf")
            case "text": return "1.0"
            case "huge": return 10 ** 400
            case "true": return True
            case "false": return False
            case "integer": return 3
            case "numpy":
                import numpy
                return numpy.float32(0.5)
            case "numpy truth":
                import numpy
                return numpy.isclose(0.3, 0.1 + 0.2)
            case "print":
                print("to stdout", "\\ud800")
                os.write(1, b'{"score": 5}\\n')
                subprocess.run(["echo", '{"score": 6}'], check=True)
                return 1
            case "flood":
                for _ in range(64):
                    os.write(2, b"x" * (1 << 16))
                    os.write(1, b"y" * (1 << 16))
                return 1
            case "last words":
                os.write(2, b"x" * (1 << 20) + b"\\nthe cause\\n")
                os._exit(1)
            case "fork":
                if os.fork() == 0:
                    return 99
                return 1
            case "fork and raise":
                if os.fork() == 0:
                    raise SystemExit(0)
                return 1
            case "child":
                subprocess.Popen(["sleep", marker])
                return 1
            case "ended child":
                subprocess.Popen(["true"])
                return 1
            case "daemon":
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        os.execvp("sleep", ["sleep", marker])
                    os._exit(0)
                time.sleep(0.1)
                return 1
            case "daemon and die":
                subprocess.Popen(["setsid", "sleep", marker])
                time.sleep(0.1)
                os._exit(4)
            case "child and kill group":
                subprocess.Popen(["sleep", marker], start_new_session=True)
                os.killpg(0, signal.SIGKILL)
            case "child and hang":
                subprocess.Popen(["sleep", marker], start_new_session=True)
                time.sleep(600)
            case "thread":
                threading.Thread(target=time.sleep, args=(600,)).start()
                return 1
            case "close pipes":
                os.closerange(3, 256)
                return 1
            case "garbage":
                for fd in range(3, 32):
                    try: os.write(fd, b"garbage\\n")
                    except OSError: pass
                return 1
"""


@pytest.fixture
def marker() -> str:
    """A length of sleep that no other process has."""
    return f"600.{random.SystemRandom().randrange(10**12):012d}"


@pytest.fixture
def act(own: Own, grade: Grade, marker: str) -> Callable[..., list[tuple[float | None, str | None]]]:
    """act(*completions): (reward, error) of each, from one worker with a limit of half a second."""

    def run(*completions: str, **limits: object) -> list[tuple[float | None, str | None]]:
        component = RewardComponent(grader=f"{own(ACTS)}:act", name="act", args={"marker": marker})
        items = [RewardItem(completion, None, {}) for completion in completions]
        results = grade([component], items, **{"timeout_seconds": 0.5} | limits)
        return [(r.reward, None if r.error is None else r.error.removeprefix("reward_act: ")) for r in results]

    return run


OK = (1.0, None)
Act = Callable[..., list[tuple[float | None, str | None]]]


def between(bad: Sequence[str]) -> list[str]:
    """The bad items, with a good one before, between and after."""
    return ["ok", *(item for text in bad for item in (text, "ok"))]


def test_exceptions_are_one_line_errors_and_the_worker_goes_on(act: Act) -> None:
    bad = {
        "raise": "KeyError: 'gone'",
        "raise nothing": "RuntimeError",
        "raise unprintable": "Broken: a Broken that cannot be shown (ValueError)",
        "sys.exit": "SystemExit: 3",
    }
    results = act(*between([*bad, "raise long"]))
    assert results[::2] == [OK] * (len(bad) + 2)
    assert results[1:-2:2] == [(None, text) for text in bad.values()]
    reward, error = results[-2]
    assert reward is None
    assert error is not None and error.startswith("ValueError: word word") and len(error) <= 400 and error.endswith("…")


def test_a_score_is_a_finite_number(act: Act) -> None:
    good = {"true": 1.0, "false": 0.0, "integer": 3.0, "numpy": 0.5, "numpy truth": 1.0}
    bad = {
        "none": "returned None, expected a finite number",
        "nan": "returned nan, expected a finite number",
        "infinity": "returned inf, expected a finite number",
        "text": "returned '1.0', expected a finite number",
        "huge": "OverflowError: int too large to convert to float",
    }
    assert act(*good, *bad) == [(value, None) for value in good.values()] + [(None, text) for text in bad.values()]


def test_a_grader_that_hangs_is_killed_and_the_next_item_goes_on(act: Act) -> None:
    bad = ["hang", "hang in C", "ignore", "stop"]
    started = time.monotonic()
    results = act(*between(bad))
    assert results[::2] == [OK] * 5
    assert results[1::2] == [(None, "no answer within 0.5 s")] * 4
    assert time.monotonic() - started < 15


def test_a_worker_that_dies_is_replaced(act: Act) -> None:
    bad = {
        "os._exit": "worker ended with exit status 3",
        "os._exit 0": "worker ended with exit status 0",
        "kill": "worker ended with signal 9 SIGKILL (memory limit 4096 MiB?)",
        "kill group": "worker ended with signal 9 SIGKILL (memory limit 4096 MiB?)",
        "segfault": "worker ended with signal 11 SIGSEGV (memory limit 4096 MiB?)",
        "last words": "worker ended with exit status 1; it printed last: the cause",
    }
    results = act(*between(list(bad)))
    assert results[::2] == [OK] * (len(bad) + 1)
    assert results[1::2] == [(None, text) for text in bad.values()]


def test_the_components_before_a_hanging_one_keep_their_scores(own: Own, grade: Grade) -> None:
    module = own(ACTS)
    components = [
        RewardComponent(grader="exact_match", name="first"),
        RewardComponent(grader=f"{module}:act"),
        RewardComponent(grader="exact_match", name="last"),
    ]
    items = [RewardItem("hang", "hang", {}), RewardItem("ok", "ok", {})]
    hung, good = grade(components, items, timeout_seconds=0.5)
    assert hung.components == {"reward_first": 1.0, "reward_act": None, "reward_last": None}
    assert (hung.reward, hung.error) == (None, "reward_act: no answer within 0.5 s")
    assert good.reward == 3.0


def test_the_time_limit_is_that_of_one_completion(own: Own, grade: Grade) -> None:
    module = own("import time\ntime.sleep(0.6)\ndef nap(completion, answer, prompt):\n    time.sleep(0.1)\n    return 1\n")
    results = grade([RewardComponent(grader=f"{module}:nap")], [RewardItem("", None, {})] * 8, timeout_seconds=0.5)
    assert [r.reward for r in results] == [1.0] * 8


def test_one_allocation_too_large_is_an_error(act: Act) -> None:
    assert act("ok", "memory", "ok") == [OK, (None, "MemoryError (memory limit 4096 MiB)"), OK]


def test_a_leak_costs_a_worker_but_no_result(act: Act) -> None:
    # 48 MiB a call, 256 MiB a worker: every fifth call or so would fail without a fresh worker.
    assert act(*["leak"] * 20, memory_mib=256) == [OK] * 20


def test_printing_does_not_disturb_the_protocol(act: Act) -> None:
    assert act("print", "ok", "flood", "ok", timeout_seconds=10) == [OK] * 4


def test_what_graders_print_stays_out_of_the_terminal_unless_asked(own: Own, capfd: pytest.CaptureFixture[str]) -> None:
    component = RewardComponent(grader=f"{own(ACTS)}:act")
    for show in (False, True):
        with RewardPool(RewardConfig(components=(component,)), show_output=show) as pool:
            pool.submit([RewardItem("print", None, {})]).result(timeout=60)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("to stdout" in shown.err) is show


def test_a_forked_copy_that_comes_back_is_not_heard(act: Act) -> None:
    assert act("fork", "fork and raise", "ok", "fork", "ok") == [OK] * 5


def test_no_process_that_a_grader_starts_outlives_it(act: Act, marker: str, wait_until_gone: Gone) -> None:
    results = act(*between(["child", "daemon", "daemon and die", "child and kill group", "child and hang"]), timeout_seconds=4)
    assert results[::2] == [OK] * 6
    assert results[1::2] == [
        OK,
        OK,
        (None, "worker ended with exit status 4"),
        (None, "worker ended with signal 9 SIGKILL (memory limit 4096 MiB?)"),
        (None, "no answer within 4 s"),
    ]
    assert wait_until_gone(marker) == []


def test_children_of_an_item_are_gone_when_the_next_is_graded(own: Own, grade: Grade, marker: str) -> None:
    module = own("""
        import os, subprocess, time

        HELPER = subprocess.Popen(["sleep", "600"])

        def start(completion, answer, prompt, marker):
            if completion == "child":
                subprocess.Popen(["sleep", marker])
            if completion == "about to end":
                subprocess.Popen(["sleep", "0.03"])
            if completion == "daemon":
                if os.fork() == 0:
                    subprocess.Popen(["sleep", marker], start_new_session=True)
                    os._exit(0)
                os.wait()
            return os.getpid()
    """)
    component = RewardComponent(grader=f"{module}:start", args={"marker": marker})
    items = [RewardItem(text, None, {}) for text in ("calm", "about to end", "child", "calm", "daemon", "calm")]
    results = grade([component], items)
    assert [r.error for r in results] == [None] * 6
    first, second, third, fourth, fifth, sixth = (r.reward for r in results)
    assert first == second == third  # neither an ending child nor a helper that started with the module counts
    assert third != fourth == fifth != sixth


def test_an_item_does_not_pay_for_what_earlier_ones_left_in_the_worker(own: Own, grade: Grade) -> None:
    module = own("""
        import os

        CALLS = []

        def third_time_fatal(completion, answer, prompt):
            CALLS.append(completion)
            if len(CALLS) == 3:
                os._exit(1)
            return 1
    """)
    results = grade([RewardComponent(grader=f"{module}:third_time_fatal")], [RewardItem("", None, {})] * 7)
    assert [(r.reward, r.error) for r in results] == [(1.0, None)] * 7


def test_an_ended_child_that_nobody_waited_for_and_a_thread_are_no_reason_for_anything(act: Act) -> None:
    assert act("ended child", "ok", "thread", "ok") == [OK] * 4


def test_a_broken_connection_is_an_error_of_the_item(act: Act) -> None:
    results = act("close pipes", "ok", "garbage", "ok")
    assert [results[1], results[3]] == [OK, OK]
    for reward, error in (results[0], results[2]):
        assert reward is None
        assert error is not None and error.startswith("worker ")


def test_too_little_memory_to_start_is_an_answer() -> None:
    config = RewardConfig(components=(RewardComponent(grader="reasoning_gym"),), memory_mib=64)
    with pytest.raises(UserError, match="memory"), RewardPool(config):
        pass


def test_a_worker_that_dies_at_start_is_an_answer_with_its_last_words(own: Own) -> None:
    module = own("import os\nos.write(2, b'no licence file')\nos._exit(5)\n")
    config = RewardConfig(components=(RewardComponent(grader=f"{module}:f"),))
    with pytest.raises(StageFailed, match="exit status 5; it printed last: no licence file"), RewardPool(config):
        pass


def test_a_worker_that_is_never_ready_is_an_answer(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rewards.process.STARTUP_SECONDS", 0.3)
    config = RewardConfig(components=(RewardComponent(grader=f"{own('import time; time.sleep(60)')}:f"),))
    with pytest.raises(StageFailed, match="was not ready within"), RewardPool(config):
        pass


def test_a_worker_that_cannot_be_replaced_fails_the_future_and_later_ones(own: Own) -> None:
    module = own("""
        import os
        from pathlib import Path

        if Path("started").exists():
            os._exit(5)
        Path("started").touch()

        def die(completion, answer, prompt):
            os._exit(6)
    """)
    config = RewardConfig(components=(RewardComponent(grader=f"{module}:die"),))
    with RewardPool(config) as pool:
        for _ in range(2):
            future = pool.submit([RewardItem("", None, {})] * 3)
            with pytest.raises(StageFailed, match="exit status 5"):
                future.result(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_parent_leaves_no_process(
    own: Own, tmp_path: Path, marker: str, wait_until_gone: Gone, number: signal.Signals
) -> None:
    module = own("""
        import subprocess, time
        from pathlib import Path

        def hang(completion, answer, prompt, marker):
            subprocess.Popen(["sleep", marker], start_new_session=True)
            (Path.cwd() / f"hanging-{completion}").touch()
            time.sleep(600)
    """)
    program = f"""
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool
component = RewardComponent(grader="{module}:hang", args={{"marker": "{marker}"}})
with RewardPool(RewardConfig(components=(component,), workers=2, timeout_seconds=600)) as pool:
    pool.submit([RewardItem(text, None, {{}}) for text in "ab"]).result()
"""
    root = str(Path(next(iter(pipeline.__path__))).parent)
    parent = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": root})
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("hanging-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list(tmp_path.glob("hanging-*"))) == 2
    parent.send_signal(number)
    parent.wait(timeout=10)
    assert wait_until_gone(marker) == []
    assert wait_until_gone(f"pipeline.rewards.worker {parent.pid}") == []
