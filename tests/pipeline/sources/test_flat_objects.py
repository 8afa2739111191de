"""Lines that are read fast say what they say where they are read slowly, and what is wrong with one is found either way."""

from __future__ import annotations

import random

import pytest

from pipeline.sources import readers
from pipeline.sources.readers import json_object

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


def test_a_name_that_is_there_twice_is_refused_in_a_flat_object_too() -> None:
    with pytest.raises(ValueError, match="'a' is there twice"):
        json_object(b'{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match="'a' is there twice"):
        json_object(b'{"a" :1, "a" :2, "b": "x\\":"}')
