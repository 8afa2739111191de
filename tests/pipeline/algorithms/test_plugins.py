"""Algorithms of the user's own: from a file, from an installed package, and the examples of the documentation."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.algorithms import ALGORITHMS, known, plugins, resolve
from pipeline.algorithms.describe import describe_all, describe_one
from pipeline.algorithms.tokens import Tokens, Totals
from pipeline.common.errors import UserError
from pipeline.prepare.rehearsal import rehearse

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("own_*.py"))
MINE = """
    from pipeline.algorithms.reinforce import REINFORCE

    MINE = REINFORCE.replace(name="mine", summary="Mine.")
    ALGORITHMS = (MINE,)
"""
CELL = """
    from dataclasses import dataclass
    from pipeline.algorithms.cells.cell import Cell
    from pipeline.algorithms.cells.advantages import GroupMean
    from pipeline.algorithms.reinforce import REINFORCE

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Mine(Cell):
        power: float = 1.0

        def weight(self, drift):
            {body}

    ALGORITHMS = (REINFORCE.replace(name="mine", importance=Mine()),)
"""
MakePlugin = Callable[..., str]


@pytest.fixture
def plugin(tmp_path: Path) -> MakePlugin:
    """plugin(source, name): path of a file."""

    def write(source: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return str(path)

    return write


def test_a_file_adds_its_algorithms_to_the_built_in_ones(plugin: MakePlugin) -> None:
    file = plugin(MINE)
    assert known([file]).keys() - ALGORITHMS.keys() == {"mine"}
    assert resolve("mine", {"shift": -0.5}, [file]).advantage.shift == -0.5  # type: ignore[attr-defined]
    assert resolve("grpo", {}, [file]) == ALGORITHMS["grpo"]
    assert "mine" not in ALGORITHMS


def test_the_same_file_may_be_named_twice_and_several_may_be_named(plugin: MakePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = plugin(MINE), plugin(MINE.replace('"mine"', '"other"'), "other.py")
    monkeypatch.chdir(Path(file).parent)
    assert known([file, "mine.py", "./other.py", other]).keys() - ALGORITHMS.keys() == {"mine", "other"}


def test_the_hash_of_the_file_is_part_of_what_decides_shaping_and_loss(plugin: MakePlugin) -> None:
    one, other = (
        resolve("mine", {}, [plugin(MINE + comment, name)]) for comment, name in (("", "a.py"), ("    # more\n", "b.py"))
    )
    reinforce = resolve("reinforce")
    assert len(one.source) == 64
    assert one.recipe() == {**reinforce.recipe(), "source": one.source} != other.recipe()
    assert one.shaping_recipe() == {**reinforce.shaping_recipe(), "source": one.source} != other.shaping_recipe()
    assert "source" not in reinforce.recipe()


def test_a_file_is_run_once_in_a_process_whatever_becomes_of_it(plugin: MakePlugin) -> None:
    file = plugin(MINE)
    first = resolve("mine", {}, [file])
    plugin(MINE + "# edited")
    assert resolve("mine", {}, [file]).source == first.source


def test_a_stage_refuses_a_file_that_is_not_the_one_its_key_was_made_from(plugin: MakePlugin) -> None:
    mine = resolve("mine", {}, [plugin(MINE)])
    assert plugins.unchanged(mine, mine.recipe()) is mine
    assert plugins.unchanged(resolve("grpo"), resolve("grpo").recipe()) == resolve("grpo")
    with pytest.raises(UserError, match="mine: its plugin was edited since the command started"):
        plugins.unchanged(mine, {**mine.recipe(), "source": "0" * 64})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ndef f(:\n", "mine.py, line 2: invalid syntax"),
        ("x = 1\n1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import my_helper\n", "mine.py, line 1: ModuleNotFoundError: No module named 'my_helper'. A plugin imports installed"),
        ("import sys\nsys.exit(3)\n", "mine.py, line 2: SystemExit: 3"),
        ("x = 1\n", "mine.py: has no ALGORITHMS. End it with a tuple"),
        ("ALGORITHMS = ()\n", "mine.py: ALGORITHMS is (). End it with a tuple"),
        ("ALGORITHMS = (1,)\n", "mine.py: 1 is of type int; expected a PolicyGradient"),
        (MINE.replace('"mine"', '"grpo"'), "mine.py: 'grpo' is the name of a built-in algorithm; give yours a name of its own"),
        (MINE.replace("(MINE,)", "(MINE, MINE)"), "mine.py: 'mine' is the name of another one of a plugin"),
        (MINE.replace('"mine"', '"my own"'), "mine.py: 'my own' is no name of an algorithm"),
        (MINE.replace('"mine"', "7"), "mine.py: 7 is no name of an algorithm"),
        (MINE.replace('summary="Mine."', "importance=object()"), "'mine': a cell is not sound: "),
        (
            CELL.replace("power: float = 1.0", 'needs = ("values",)').format(body="pass"),
            "'mine': a cell needs 'values'; a cell can",
        ),
        (CELL.replace("power: float = 1.0", "power: object = print").format(body="pass"), "'mine': a cell is not sound: "),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_message(source: str, expected: str, plugin: MakePlugin) -> None:
    with pytest.raises(UserError) as error:
        known([plugin(source)])
    assert str(error.value).startswith("plugin ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plugin nowhere\.py: no such file"):
        known(["nowhere.py"])
    with pytest.raises(UserError, match="expected a Python file, such as"):
        known([str(tmp_path)])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return drift.nonsense", "mine.py, line 12: AttributeError: 'Drift' object has no attribute 'nonsense'"),
        ("return drift.advantage[:2] + drift.advantage[:3]", "mine.py, line 12: RuntimeError: "),
        ("return drift.advantage * float('inf')", "its loss or its gradient is not finite"),
        ("return drift.log_ratio", "mine.py, line 12: ValueError: a cell reads the ratio pi/mu without saying so; set needs ="),
        ("return drift.ratio_of('sequence')", "mine.py, line 12: ValueError: a cell reads the ratio pi/mu without saying so"),
        ("return drift.tokens.behavior + 1", "mine.py, line 12: TypeError: "),
        ("return drift.tokens.reference + 1", "mine.py, line 12: TypeError: "),
    ],
)
def test_a_slip_in_a_cell_is_found_on_made_up_completions(body: str, expected: str, plugin: MakePlugin) -> None:
    mine = resolve("mine", {}, [plugin(CELL.format(body=body))])
    with pytest.raises(UserError) as error:
        rehearse(mine)
    assert str(error.value).startswith("mine: ")
    assert expected in str(error.value)


def test_a_cell_that_says_what_it_needs_is_rehearsed_with_it(plugin: MakePlugin) -> None:
    source = CELL.replace("power: float = 1.0", 'needs = ("behavior_logprobs", "reference_logprobs")')
    rehearse(resolve("mine", {}, [plugin(source.format(body="return drift.log_ratio.exp() * drift.tokens.reference.exp()"))]))


def test_a_penalty_on_a_ratio_that_it_does_not_need_is_found(plugin: MakePlugin) -> None:
    penalty = CELL.replace("weight(self, drift)", "term(self, tokens, log_ratio)").replace("power:", "coefficient:")
    source = penalty.replace("importance=Mine()", "regularizers=(Mine(),)").format(body="return log_ratio**2")
    with pytest.raises(UserError, match=r"mine\.py, line 12: TypeError: "):
        rehearse(resolve("mine", {}, [plugin(source)]))


def test_an_advantage_that_is_not_a_number_is_found_on_made_up_completions(plugin: MakePlugin) -> None:
    advantage = CELL.replace("(Cell)", "(GroupMean)").replace("weight(self, drift)", "expression(self, reward)")
    source = advantage.replace("importance=", "advantage=").format(body="return (reward - 2.0).log()")
    with pytest.raises(UserError, match="gives a made-up completion with reward 1 the advantage nan"):
        rehearse(resolve("mine", {}, [plugin(source)]))


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_the_rehearsal_passes_what_is_sound(algorithm: Any) -> None:
    rehearse(algorithm)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """package(points, source): an installed package `theirs` with these entry points."""

    def install(points: str, source: str = MINE) -> None:
        info = tmp_path / "theirs-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[rollbook.algorithms]\n{points}\n")
        (tmp_path / "theirs.py").write_text(textwrap.dedent(source) + "\nprint('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "theirs", raising=False)

    return install


def test_an_installed_package_brings_algorithms_by_name(package: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    package("mine = theirs:MINE\ngrpo = theirs:MINE")
    assert plugins.installed()["mine"] == "theirs 1.2"
    assert {"name": "mine", "package": "theirs 1.2"} in describe_all()
    assert resolve("grpo") == ALGORITHMS["grpo"]
    assert capsys.readouterr().out == ""  # nothing was imported so far
    mine = resolve("mine", {"shift": -0.5})
    assert (mine.name, len(mine.source)) == ("mine", 64)
    assert describe_one("mine")["source"] == mine.source


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ("mine = theirs:NOTHING", "theirs 1.2 (theirs:NOTHING): AttributeError: "),
        ("mine = nowhere:MINE", "theirs 1.2 (nowhere:MINE): ModuleNotFoundError: "),
        ("mine = theirs:ALGORITHMS", "theirs 1.2 (theirs:ALGORITHMS): (PolicyGradient("),
        ("yours = theirs:MINE", "its entry point is 'yours', but the algorithm's name is 'mine'"),
    ],
)
def test_a_package_that_cannot_be_used_is_refused(points: str, expected: str, package: Callable[..., None]) -> None:
    package(points)
    with pytest.raises(UserError) as error:
        resolve(points.split()[0])
    assert expected in str(error.value)


@pytest.fixture
def source_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """source_of(version, cells): the source of an algorithm of `parted`, whose cell is in another module than its entry point."""

    def install(version: str = "1.0", cells: str = "power = 1") -> str:
        site = tmp_path / f"site-{len(list(tmp_path.iterdir()))}"
        files = {
            f"parted-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: parted\nVersion: {version}\n",
            f"parted-{version}.dist-info/entry_points.txt": "[rollbook.algorithms]\nmine = parted.algorithms:MINE\n",
            "parted/__init__.py": "",
            "parted/deep/cells.py": cells,
            "parted/algorithms.py": "from parted.deep import cells\n" + textwrap.dedent(MINE),
        }
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(site))
            for module in [name for name in sys.modules if name.partition(".")[0] == "parted"]:
                patched.delitem(sys.modules, module)
            return resolve("mine").source

    return install


def test_every_module_of_a_package_and_its_version_decide_its_source(source_of: Callable[..., str]) -> None:
    first = source_of()
    assert source_of() == first
    assert len({first, source_of(cells="power = 2"), source_of(version="1.1")}) == 3


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_short_and_sound(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert source.count("\n") < 40
    assert f"--plugin examples/{file.name}" in source
    (algorithm,) = plugins.from_file(str(file))
    rehearse(algorithm)
    assert describe_one(algorithm.name, [str(file)])["source"] == algorithm.source


def test_there_is_an_example_of_cells_that_are_there_and_of_a_new_one() -> None:
    assert [path.name for path in EXAMPLES] == ["own_algorithm.py", "own_cell.py"]


@pytest.mark.parametrize(
    ("p", "weight"), [(0.001, 0.0098), (0.01, 0.0826), (0.1, 0.25), (0.5, 0.1389), (0.9, 0.09), (1.0, 0.0826)]
)
def test_the_example_of_a_cell_weighs_as_its_paper_does(p: float, weight: float, make_tokens: Callable[..., Tokens]) -> None:
    import math

    import torch

    luffy = resolve("luffy", {"divisor": 1.0}, [str(ROOT / "examples/own_cell.py")])
    tokens = make_tokens([[math.log(p)]], [1.0])
    (slope,) = torch.autograd.grad(luffy.loss(tokens, Totals(tokens=1, sequences=1)).value, tokens.logprobs)
    assert -slope.item() == pytest.approx(weight, abs=6e-5)
    shaped = tokens.logprobs.exp() / (tokens.logprobs.exp() + 0.1)
    assert -slope.item() == pytest.approx(torch.autograd.grad(shaped.sum(), tokens.logprobs)[0].item())


def test_a_file_is_described_without_importing_torch() -> None:
    program = "import sys, pipeline.algorithms.describe as d; d.describe_all(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-P", "-c", program, *map(str, EXAMPLES)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "vllm", "transformers"} & set(found.stdout.split())
