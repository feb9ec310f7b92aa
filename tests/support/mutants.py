"""Bugs put into the shipped kernels, one at a time, each of which the tests must notice: `make mutants`.

    python -m mutants                    # every mutant; a table; exit status 1 if one survives that should not
    python -m mutants --only edge --jobs 1

A mutant is one expression or statement of one function, replaced by another in a copy of the package; the copy then has
to get through `killing_suite` in a process of its own. Functions are looked for by name and code is compared by its
syntax tree, so that neither a file's name nor where lines break decides whether a mutant fits. A mutant that computes
the same as the original cannot be noticed: such an *equivalent* one carries its reason, and is run as well, to see that
it does survive.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900.0  # seconds; a mutant may loop for ever
JOBS = 2


@dataclass(frozen=True)
class Mutant:
    """`old`, an expression or a statement, must stand in `function` exactly `count` times; its `nth` becomes `new`."""

    name: str
    function: str  # of one of the files under kernels/; a method as "Class.method"
    old: str
    new: str
    count: int = 1
    nth: int = 0
    equivalent: str = ""  # why nobody can notice

    def apply(self, kernels: Path) -> Path:
        """Change the file that holds the function; returns it."""
        path, tree, function = self._find(kernels)
        old, new = _parsed(self.old), _parsed(self.new)
        found = [node for node in ast.walk(function) if ast.dump(node) == ast.dump(old)]
        if len(found) != self.count:
            raise LookupError(
                f"mutant {self.name!r}: {self.function} holds {self.old!r} {len(found)} times, not {self.count}: "
                "the kernel has changed; change the mutant with it"
            )
        _Replacing(found[self.nth], new).visit(tree)
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
        return path

    def _find(self, kernels: Path) -> tuple[Path, ast.Module, ast.FunctionDef]:
        found = []
        for path in sorted(kernels.rglob("*.py")):
            text = path.read_text()
            if f"def {self.function.rpartition('.')[2]}(" not in text:  # parsing takes the longest
                continue
            tree = ast.parse(text)
            for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
                prefix = "" if isinstance(owner, ast.Module) else f"{owner.name}."
                for node in owner.body:
                    if isinstance(node, ast.FunctionDef) and prefix + node.name == self.function:
                        found.append((path, tree, node))
        if len(found) != 1:
            raise LookupError(f"mutant {self.name!r}: {len(found)} functions are called {self.function}, not 1")
        return found[0]


class _Replacing(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _parsed(code: str) -> ast.AST:
    """Of an expression, or of one statement."""
    (statement,) = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant | None  # None: the package as it is
    killed: bool
    by: str  # the last line of what was raised
    seconds: float

    @property
    def wrong(self) -> bool:
        expected = self.mutant is not None and not self.mutant.equivalent
        return self.killed != expected


def copy_package(folder: Path) -> Path:
    """The package as it is installed: adaptive_window/, with kernels/ inside it. Returns the latter."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "adaptive", folder / "adaptive_window", ignore=ignored)
    return Path(shutil.copytree(ROOT / "kernels", folder / "adaptive_window" / "kernels", ignore=ignored))


def run_suite(folder: Path, *arguments: str) -> tuple[bool, str]:
    """(did it fail, what it said last)."""
    path = os.pathsep.join((str(folder), str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "killing_suite", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return True, f"no end after {TIMEOUT:.0f} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode != 0, lines[-1] if lines else f"exit status {done.returncode}"


def examine(mutant: Mutant | None) -> Outcome:
    """Copy, mutate, run."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kernels = copy_package(Path(folder))
        if mutant is not None:
            mutant.apply(kernels)
        killed, said = run_suite(Path(folder))
    return Outcome(mutant, killed, said, time.monotonic() - began)


def examine_all(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    def reported(mutant: Mutant | None) -> Outcome:
        outcome = examine(mutant)
        name = mutant.name if mutant else "(no change)"
        verdict = "killed" if outcome.killed else "survived"
        note = " EQUIVALENT" if mutant and mutant.equivalent else ""
        alarm = " <-- WRONG" if outcome.wrong else ""
        print(f"{name:44s} {verdict:9s}{note} {outcome.seconds:5.0f} s  {outcome.by[:110]}{alarm}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(reported, [None, *mutants]))


def main() -> int:
    from mutant_list import MUTANTS

    parser = argparse.ArgumentParser(description="Mutation test of the shipped kernels.")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=JOBS)
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    outcomes = examine_all(chosen, options.jobs)
    real = [o for o in outcomes if o.mutant and not o.mutant.equivalent]
    equivalent = [o for o in outcomes if o.mutant and o.mutant.equivalent]
    print(f"\n{sum(o.killed for o in real)} of {len(real)} mutants killed; {len(equivalent)} equivalent:")
    for outcome in equivalent:
        assert outcome.mutant is not None
        print(f"  {outcome.mutant.name}: {outcome.mutant.equivalent}")
    wrong = [o for o in outcomes if o.wrong]
    for outcome in wrong:
        print(f"WRONG: {outcome.mutant.name if outcome.mutant else 'the package as it is'}: {outcome.by}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
