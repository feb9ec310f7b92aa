"""The mutation harness: `make mutants` runs all of it, the suite its machinery and two mutants."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton")

import mutants
from mutant_list import MUTANTS
from mutants import Mutant, Outcome, copy_package, examine

KERNELS = Path(__file__).parents[2] / "kernels"


def test_enough_of_them_and_no_name_twice() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert sum(not mutant.equivalent for mutant in MUTANTS) >= 30
    assert all(mutant.equivalent == "" or len(mutant.equivalent) > 20 for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fits_the_kernels_as_they_are(mutant: Mutant, tmp_path: Path) -> None:
    """A kernel that changes takes its mutants along; and what comes out is other Python."""
    kernels = shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    changed = mutant.apply(kernels)
    original = ast.parse((KERNELS / changed.relative_to(kernels)).read_text())
    assert ast.dump(ast.parse(changed.read_text())) != ast.dump(original)


def test_code_is_compared_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(x):\n    y = (x  +\n         1)  # why\n    return y, x + 1\n")
    (tmp_path / "b.py").write_text("class C:\n    def f(self):\n        return 1\n")
    with pytest.raises(LookupError, match=r"f holds 'x \+ 1' 2 times, not 1"):
        Mutant("twice", "f", "x + 1", "x").apply(tmp_path)
    Mutant("second", "f", "x + 1", "x", count=2, nth=1).apply(tmp_path)
    assert (tmp_path / "a.py").read_text() == "def f(x):\n    y = x + 1\n    return (y, x)"
    Mutant("statement", "f", "y = x+1", "pass").apply(tmp_path)
    assert (tmp_path / "a.py").read_text() == "def f(x):\n    pass\n    return (y, x)"
    Mutant("method", "C.f", "return 1", "return 2").apply(tmp_path)
    assert "return 2" in (tmp_path / "b.py").read_text()
    with pytest.raises(LookupError, match="0 functions are called g"):
        Mutant("nowhere", "g", "1", "2").apply(tmp_path)


def test_what_counts_as_wrong() -> None:
    real, same = Mutant("real", "a.py", "a", "b"), Mutant("same", "a.py", "a", "b", equivalent="because")
    killed, survived = {"killed": True, "by": "", "seconds": 0.0}, {"killed": False, "by": "", "seconds": 0.0}
    assert [Outcome(mutant, **killed).wrong for mutant in (real, same, None)] == [False, True, True]
    assert [Outcome(mutant, **survived).wrong for mutant in (real, same, None)] == [True, False, False]


def test_the_copy_is_the_package(tmp_path: Path) -> None:
    kernels = copy_package(tmp_path)
    assert kernels == tmp_path / "adaptive_window" / "kernels"
    assert (kernels / "triton" / "interpolation.py").is_file()
    assert (tmp_path / "adaptive_window" / "model").is_dir()


@pytest.mark.proof
@pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="mutants run in the interpreter")
def test_the_package_survives_and_a_mutant_does_not() -> None:
    chosen = [mutant for mutant in MUTANTS if mutant.name == "NaN window gives numbers"]
    outcomes = mutants.examine_all(chosen, jobs=2)
    assert [outcome.wrong for outcome in outcomes] == [False, False], [outcome.by for outcome in outcomes]
    assert outcomes[0].by.startswith("passed: ")


def test_a_copy_that_does_not_run_counts_as_killed() -> None:
    outcome = examine(Mutant("no Python", "finite", "return tl.minimum(tl.maximum(a, -LIMIT), LIMIT)", "break"))
    assert outcome.killed
    assert "SyntaxError" in outcome.by
