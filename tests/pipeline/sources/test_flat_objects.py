"""Lines that are read fast say what they say where they are read slowly, and what is wrong with one is found either way."""

from __future__ import annotations

import random

import pytest

from pipeline.sources import readers
from pipeline.sources.readers import flat_objects, json_object

NAMES = ("a", "b", "c", 'a\\"', '\\":')
VALUES = ("1", '"x"', '"a\\":"', "null", "[1, 2]", '"\\ud800"', '"\\ud83d\\ude00"', '{"a": 1}', "1e3", "NaN", "01", '"\t"', "1.5")


def _said(line: bytes) -> str:
    try:
        return repr(json_object(line))
    except ValueError as error:
        return f"refused: {error}"


def test_flat_objects_are_what_the_careful_reader_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    pairs = [
        [
            f'"{draw.choice(NAMES)}"{draw.choice(("", "", " "))}:{draw.choice(("", " "))}{draw.choice(VALUES)}'
            for _ in range(number % 4)
        ]
        for number in range(4000)
    ]
    lines = [f"{{{', '.join(one)}}}".encode() for one in pairs]
    assert sum(readers._flat_object(line) is not None for line in lines) > 500
    fast = [_said(line) for line in lines]
    monkeypatch.setattr(readers, "_flat_object", lambda line: None)
    assert fast == [_said(line) for line in lines]


def test_objects_that_are_read_at_once_are_those_of_each_line() -> None:
    draw = random.Random(0)
    pieces = ("{", "}", '"a"', '"b"', ":", ": ", ",", "1", "[", "]", '"x', '":', "\\", '"', " ", "null", '{"a": 1}')
    whole = ('{"a": 1}', '{"a": "x", "b": null}', '{"b":2.5,"a":"{"}', "{}", '{"a": "\\":"}')
    lines = [b"".join(draw.choice(pieces).encode() for _ in range(draw.randrange(1, 9))) for _ in range(20_000)]
    lines += [draw.choice(whole).encode() for _ in range(20_000)]
    draw.shuffle(lines)
    read = 0
    for start in range(0, len(lines), 2):
        together = [line + b"\n" for line in lines[start : start + 2]]
        found = flat_objects(together)
        if found is not None:
            read += 1
            assert repr(found) == f"[{', '.join(map(_said, together))}]"
    assert read > 1000
    for cut in (
        '{"a": {"b": 1}\n{"c": 2}}\n',
        '{"a": "x\n","b": 1}\n',
        '{"a": 1},{"b": 2}\n{"c": 3\n',
        '{"a": 1}, 5\n',
        '{"a": 1, "a": 2}\n',
    ):
        assert flat_objects([line.encode() for line in cut.splitlines(keepends=True)]) is None


def test_a_name_that_is_there_twice_is_refused_in_a_flat_object_too() -> None:
    with pytest.raises(ValueError, match="'a' is there twice"):
        json_object(b'{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match="'a' is there twice"):
        json_object(b'{"a" :1, "a" :2, "b": "x\\":"}')
