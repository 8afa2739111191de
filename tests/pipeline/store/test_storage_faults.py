"""Object storage that is slow, breaks off, fails or refuses; and writers there that meet, die, fall silent and wake up."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import StageFailed, UserError
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store import bucket as bucket_module
from pipeline.store.lease import LeaseLost
from schemas import Shaped

REQUEST = Request("shaped", "test/1", {})
LOCK = f"locks/shaped-{REQUEST.key[:16]}.lock"
FOLDER = f"shaped/{REQUEST.key[:16]}"
MAKE = """
    with store.work(request) as work:
        if isinstance(work, Work):
            for number in range(6):
                if not work.has_table(f"part-{number}.parquet", Shaped):
                    work.write_table(f"part-{number}.parquet", rows(str(number), 10), Shaped)
                    time.sleep(0.1)
            say("made", work.finish({}).id)
        else:
            say("found", work.id)
"""


def rows(group: str, count: int = 10) -> pl.DataFrame:
    types = {name: column.dtype for name, column in Shaped.columns().items()}
    return pl.DataFrame([(group, i, 0.5, 1.0, True, None) for i in range(count)], schema=types, orient="row")


def make(store: Store) -> Artifact:
    """What `MAKE` makes."""
    with store.work(REQUEST) as work:
        if not isinstance(work, Work):
            return work
        for number in range(6):
            if not work.has_table(f"part-{number}.parquet", Shaped):
                work.write_table(f"part-{number}.parquet", rows(str(number)), Shaped)
        return work.finish({})


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """elsewhere("b"): from now on this process, and those it starts, are on another machine: they have another cache."""
    return lambda name: monkeypatch.setenv("ROLLBOOK_CACHE", str(tmp_path / name))


def line_of(stream: Any) -> str:
    line = stream.readline()
    assert line, "the process ended without a word"
    return str(line).strip()


# Writers that meet


def test_of_four_processes_on_two_machines_one_makes_the_artifact(
    bucket: Any, start: Any, store: Store, elsewhere: Callable[[str], None]
) -> None:
    processes = []
    for name in "abab":
        elsewhere(name)
        processes.append(start(MAKE, bucket.url))
    answers = sorted(process.communicate(timeout=60)[0].split() for process in processes)
    assert [words[0] for words in answers] == ["found", "found", "found", "made"]
    assert {words[1] for words in answers} == {make(store).id}
    elsewhere("c")
    make(Store(bucket.url)).verify()


@pytest.mark.long
def test_a_writer_killed_again_and_again_on_two_machines_ends_with_the_same_artifact(
    bucket: Any, start: Any, store: Store, elsewhere: Callable[[str], None]
) -> None:
    """Ten SIGKILLs at seeded random moments, most of them while files are sent."""
    lot = random.Random(0)
    for kill in range(10):
        elsewhere("ab"[kill % 2])
        began = len(bucket.server.requests)
        writer = start(MAKE, bucket.url)
        while len(bucket.server.requests) == began and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(lot.uniform(0, 3.5))
        writer.kill()
        writer.wait()
    elsewhere("a")
    made = make(Store(bucket.url))
    made.verify()
    assert made.id == make(store).id
    elsewhere("c")
    make(Store(bucket.url)).verify()
    left = [key for key in bucket.objects() if key.startswith("shaped/")]
    assert sorted(left) == sorted([f"{FOLDER}/manifest.json", *(f"{FOLDER}/{file.path}" for file in made.files)])


def test_who_waits_is_told_for_whom(bucket: Any, start: Any, elsewhere: Callable[[str], None]) -> None:
    holder = start('with store.work(request): say("holding"); time.sleep(60)', bucket.url)
    assert line_of(holder.stdout) == "holding"
    elsewhere("other")
    waiting = start("with store.work(request) as work: say(type(work).__name__)", bucket.url)
    told = line_of(waiting.stderr)
    assert told.startswith(f"waiting for shaped-{REQUEST.key[:16]}, held by process {holder.pid} on ")
    assert told.endswith("(if that has died, for 2 s at most)")
    holder.kill()
    assert "took over from" in line_of(waiting.stderr)
    assert line_of(waiting.stdout) == "Work"


def test_the_lease_of_a_process_that_died_here_is_free_at_once(bucket: Any, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLBOOK_LEASE_SECONDS", "600")
    holder = start('with store.work(request): say("holding"); time.sleep(60)', bucket.url)
    assert line_of(holder.stdout) == "holding"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    make(Store(bucket.url))
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_lease_outlives_its_term_while_its_holder_lives(bucket: Any, start: Any, elsewhere: Callable[[str], None]) -> None:
    """Four terms long somebody waits, in vain."""
    with Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        elsewhere("other")
        waiting = start("with store.work(request) as work: say(type(work).__name__)", bucket.url)
        line_of(waiting.stderr)
        time.sleep(8)
        assert waiting.poll() is None
        work.finish({})
    assert line_of(waiting.stdout) == "Artifact"


@pytest.mark.parametrize("jump", [-86_400.0, pytest.param(86_400.0, marks=pytest.mark.slow)], ids=["back a day", "ahead a day"])
def test_a_clock_that_jumps_takes_no_lease(
    bucket: Any, start: Any, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    real = time.time
    with Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        elsewhere("other")
        waiting = start(
            f"""
            real = time.time
            time.time = lambda: real() - {jump}
            with store.work(request) as work:
                say(type(work).__name__)
            """,
            bucket.url,
        )
        line_of(waiting.stderr)
        time.sleep(2.5)
        work.write_table("part-0.parquet", rows("0"), Shaped)
        work.finish({})
    assert line_of(waiting.stdout) == "Artifact"


def test_a_writer_that_was_taken_for_dead_cannot_overwrite_its_successor(
    bucket: Any, start: Any, elsewhere: Callable[[str], None]
) -> None:
    """It is stopped (SIGSTOP) longer than its lease lasts, and then goes on with other content under the same names."""
    sleeper = start(
        """
        with store.work(request) as work:
            work.write_table("part-0.parquet", rows("stale", 10), Shaped)
            say("stop me")
            time.sleep(1)
            for number in range(6):
                work.write_table(f"part-{number}.parquet", rows("stale", 11), Shaped)
            work.finish({})
        """,
        bucket.url,
    )
    assert line_of(sleeper.stdout) == "stop me"
    sleeper.send_signal(signal.SIGSTOP)
    elsewhere("other")
    made = Store(bucket.url)
    with made.work(REQUEST) as work:
        assert isinstance(work, Work)
        for number in range(3):
            work.write_table(f"part-{number}.parquet", rows(str(number)), Shaped)
        sleeper.send_signal(signal.SIGCONT)
        _, error = sleeper.communicate(timeout=60)
        for number in range(3, 6):
            work.write_table(f"part-{number}.parquet", rows(str(number)), Shaped)
        artifact = work.finish({})
    assert sleeper.returncode == 1
    assert "LeaseLost" in error
    assert "has taken over, since this process was not heard of for 2 s. Run the same command again" in error
    elsewhere("third")
    found = Store(bucket.url).find(REQUEST)
    assert found is not None
    assert found.id == artifact.id
    found.verify()


def test_work_whose_lease_was_taken_stops(bucket: Any) -> None:
    with pytest.raises(LeaseLost, match=rf"{LOCK}: process 7 on mars has taken over"), Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
        record = {"holder": "process 7 on mars", "machine": "mars", "token": "x", "beat": 1, "seconds": 2}
        bucket.client.put_object(Bucket=name, Key=f"{prefix}/{LOCK}", Body=json.dumps(record).encode())
        work.finish({})
    assert not any(key.endswith("manifest.json") for key in bucket.objects())


def test_a_lock_that_is_no_record_is_taken_over(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.store import lease

    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    bucket.client.put_object(Bucket=name, Key=f"{prefix}/{LOCK}", Body=b"[1, 2")
    monkeypatch.setattr(lease, "UNKNOWN_SECONDS", 1.0)
    make(Store(bucket.url)).verify()


def test_storage_without_conditional_writes_is_refused(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "_condition", lambda only_if: {})
    with (
        pytest.raises(UserError, match=r"does not honor conditional writes .* or a store in a local directory"),
        Store(bucket.url).work(REQUEST),
    ):
        pass


# Storage that is slow or fails


def every(count: int, fault: float | None) -> Callable[[str, str], float | None]:
    """A fault in one of so many requests."""
    guard, seen = threading.Lock(), [0]

    def of(method: str, path: str) -> float | None:
        with guard:
            seen[0] += 1
            return fault if seen[0] % count == 0 else 0.0

    return of


@pytest.mark.parametrize(
    "fault",
    [every(2, 0.2), every(3, None), pytest.param(every(4, 1.5), marks=pytest.mark.slow)],
    ids=["slow", "breaks every third request", "times out"],
)
def test_storage_that_is_bad_at_times_is_asked_again(
    bucket: Any, store: Store, monkeypatch: pytest.MonkeyPatch, fault: Callable[[str, str], float | None]
) -> None:
    monkeypatch.setattr(bucket_module, "READ_SECONDS", 1)
    bucket.server.fault = fault
    made = make(Store(bucket.url))
    made.verify()
    assert made.id == make(store).id


@pytest.mark.slow
@pytest.mark.parametrize("status", [500, 503])
def test_storage_that_answers_with_errors_at_times_is_asked_again(bucket: Any, status: int) -> None:
    """Every third request fails twice."""
    answer, failures = bucket.server._app, dict[str, int]()
    name = bucket.url.split("/")[2]

    def failing(environment: dict[str, Any], start_response: Any) -> Any:
        if name not in environment["PATH_INFO"]:
            return answer(environment, start_response)  # of a test before, given up by its client and answered late
        request = environment.get("HTTP_AMZ_SDK_INVOCATION_ID", "")
        left = failures.setdefault(request, 0 if len(failures) % 3 else 2)
        if left:
            failures[request] = left - 1
            start_response(f"{status} Slow Down", [("Content-Type", "text/xml")])
            return [b"<Error><Code>SlowDown</Code></Error>"]
        return answer(environment, start_response)

    bucket.server._app = failing
    try:
        make(Store(bucket.url)).verify()
    finally:
        bucket.server._app = answer
    assert len(failures) >= 8, "the lock, six shards and the manifest"
    assert not any(failures.values()), "each was asked again until it answered"


def test_storage_that_is_away_for_a_while_does_not_stop_the_work(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files wait here and are sent when the artifact is finished; heartbeats fail in the meantime, and nobody takes over."""
    monkeypatch.setattr(bucket_module, "ATTEMPTS", 1)
    with Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        bucket.server.fault = lambda method, path: None
        for number in range(3):
            work.write_table(f"part-{number}.parquet", rows(str(number)), Shaped)
        time.sleep(2)
        bucket.server.fault = lambda method, path: 0.0
        assert not any(FOLDER in key for key in bucket.objects())
        work.finish({}).verify()
    told = capsys.readouterr().err
    assert "part-0.parquet: cannot write: the storage is out of reach (ConnectionClosedError)" in told
    assert "The work goes on; it is sent when all is done." in told


def test_storage_that_is_gone_is_named_and_what_is_finished_is_kept(
    bucket: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "ATTEMPTS", 1)
    expected = r"part-0\.parquet: cannot write: the storage is out of reach \(.*\)\. What is finished is kept on this machine"
    with pytest.raises(StageFailed, match=expected), Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        work.write_table("part-0.parquet", rows("0"), Shaped)
        bucket.server.fault = lambda method, path: None
        for number in range(6):
            work.write_table(f"part-{number}.parquet", rows(str(number)), Shaped)
        before = {path: path.stat().st_mtime_ns for path in work.path.glob("part-*")}
        work.finish({})
    bucket.server.fault = lambda method, path: 0.0
    made = make(Store(bucket.url))
    assert made.id == make(store).id
    assert {path: path.stat().st_mtime_ns for path in made.path.glob("part-*")} == before


def test_an_answer_that_is_lost_after_the_write_does_no_harm(bucket: Any, store: Store) -> None:
    """The server writes, and the connection breaks before it says so: the retry meets what it wrote itself."""
    answer, lost = bucket.server._app, [0]

    def forgetful(environment: dict[str, Any], start_response: Any) -> Any:
        result = list(answer(environment, start_response))
        if environment["REQUEST_METHOD"] == "PUT" and environment.get("HTTP_AMZ_SDK_REQUEST", "").startswith("attempt=1"):
            lost[0] += 1
            environment["werkzeug.socket"].shutdown(2)
        return result

    bucket.server._app = forgetful
    try:
        made = make(Store(bucket.url))
    finally:
        bucket.server._app = answer
    assert lost[0] >= 8, "the lock, six shards and the manifest"
    made.verify()
    assert made.id == make(store).id


# Storage that refuses


def test_no_credentials(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match=r"no credentials\. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile"):
        Store(bucket.url).find(REQUEST)


def test_an_unknown_profile(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"there is no profile 'nobody' in ~/\.aws"):
        Store(bucket.url).find(REQUEST)


def test_no_such_bucket(bucket: Any) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x/.*: there is no such bucket\. Make it, or mend `store`"):
        Store("s3://no-such-bucket/x").find(REQUEST)
    with pytest.raises(UserError, match="there is no such bucket"), Store("s3://no-such-bucket/x").work(REQUEST):
        pass


@pytest.mark.parametrize("status", [403, 401])
def test_access_denied_names_the_object_and_no_secret(bucket: Any, status: int) -> None:
    answer = bucket.server._app

    def refusing(environment: dict[str, Any], start_response: Any) -> Any:
        start_response(f"{status} Forbidden", [("Content-Type", "text/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>test-key-id may not</Message></Error>"]

    bucket.server._app = refusing
    try:
        with pytest.raises(UserError, match=rf"{FOLDER}/manifest\.json: cannot read: refused with AccessDenied\.") as caught:
            Store(bucket.url).find(REQUEST)
    finally:
        bucket.server._app = answer
    assert "test-key" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@bucket/x", "s3://", "s3://Upper/x", "s3://bucket/x?endpoint=y", "gs://bucket/x", "ftp://a:b@c/d"]
)
def test_an_address_that_cannot_be_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="store: ") as caught:
        Store(url)
    assert "SECRET" not in str(caught.value)
    assert "a:b" not in str(caught.value)


def test_no_secret_is_written_down(bucket: Any, tmp_path: Path) -> None:
    make(Store(bucket.url)).verify()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    written += [bucket.client.get_object(Bucket=name, Key=f"{prefix}/{key}")["Body"].read() for key in bucket.objects()]
    assert len(written) > 12
    assert not any(b"test-secret" in content or b"test-key-id" in content for content in written)
