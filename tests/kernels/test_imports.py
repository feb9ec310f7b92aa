"""Who may import whom: read from the source (`ast`), and tried in a fresh process with everything else blocked."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"adaptive_window": ROOT / "adaptive", "adaptive_window.kernels": ROOT / "kernels"}
KERNELS, TRITON = "adaptive_window.kernels", "adaptive_window.kernels.triton"

# adaptive/: each part, and the parts that it may import beside itself and the kernels
GROUND = {"errors", "console", "device"}  # the ground floor: all may stand on it
PARTS = {
    "errors": set(),
    "console": set(),
    "device": {"errors"},
    "storage": {"errors"},
    "config": {"errors"},
    "plots": {"storage"},
    "losses": set(),
    "model": {"losses"},
    "audio": {*GROUND, "storage"},
    "training": {*GROUND, "config", "storage", "plots", "losses", "model", "audio"},
    "hub": {*GROUND, "storage", "model", "training", "__version__"},
    "inference": {*GROUND, "config", "storage", "plots", "losses", "model", "audio", "training", "hub"},
    "demo": {*GROUND, "config", "storage", "plots", "model", "audio", "training", "inference"},
    # neither model nor training: the page has what it shows from the functions that compose and refine call
    "page": {*GROUND, "config", "storage", "plots", "audio", "inference", "__version__"},
    "cli": {*GROUND, "__version__", "config", "storage", "audio", "training", "inference", "demo", "page"},
    "__main__": {"cli"},
    "__init__": {"model", "inference"},
}
# the agent's methods that load and publish it: what they call stands above the modules, and is imported when called
LATE = {("adaptive_window.model.pretrained", "adaptive_window.hub.pretrained")}
HEAVY = {"encodec", "gradio", "huggingface_hub", "matplotlib", "mlflow", "plotly", "scipy", "tensorboard", "torchaudio"}


@dataclass(frozen=True)
class Import:
    """One import statement, resolved: `source` imports `target`, when it is itself imported or only when called."""

    source: str
    target: str
    at_once: bool
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _statements(tree: ast.AST, at_once: bool = True) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements; inside functions they run later, and under `if TYPE_CHECKING` never: those are left out."""
    found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, at_once))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            found += _statements(ast.Module(body=node.orelse, type_ignores=[]), at_once)
        else:
            found += _statements(node, at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return found


def imports_of(path: Path, module: str) -> list[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    result = []
    for node, at_once in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            # `from . import a` imports the module a; `from .a import name` imports a
            targets = [f"{base}.{alias.name}" for alias in node.names] if node.module is None else [base]
        result += [Import(module, target, at_once, node.lineno) for target in targets]
    return result


def all_imports() -> list[Import]:
    result = []
    for name, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            inner = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            result += imports_of(path, ".".join([name, *inner]))
    return result


ALL = all_imports()


def part_of(module: str) -> str:
    return module.removeprefix("adaptive_window").removeprefix(".").split(".")[0] or "__init__"


def outside_kernels(module: str) -> bool:
    return within(module, "adaptive_window") and not within(module, KERNELS)


def test_the_reader_sees_all_forms(tmp_path: Path) -> None:
    source = """
import a.b, c
from . import d
from .e import f
from ..g import h
from __future__ import annotations
if TYPE_CHECKING:
    import never
else:
    import other
try:
    import tried
except ImportError:
    pass
def function():
    from .later import x
class Class:
    import inside
"""
    path = tmp_path / "m.py"
    path.write_text(source)
    found = {i.target: i.at_once for i in imports_of(path, "p.q.m")}
    assert found.pop("p.q.later") is False
    assert set(found) == {"a.b", "c", "p.q.d", "p.q.e", "p.g", "__future__", "other", "tried", "inside"}
    assert all(found.values())


def test_kernels_know_nothing_of_the_rest() -> None:
    bad = [i for i in ALL if within(i.source, KERNELS) and outside_kernels(i.target)]
    assert not bad, "; ".join(map(str, bad))


def test_only_device_code_imports_triton_at_once() -> None:
    touched = [i for i in ALL if i.at_once and (within(i.target, "triton") or within(i.target, TRITON))]
    bad = [i for i in touched if not within(i.source, TRITON)]
    assert not bad, "; ".join(map(str, bad))


@pytest.mark.parametrize("module", ["reference", "validation", "memory", "weights", "ops", "functional", "__init__"])
def test_the_specification_never_touches_triton(module: str) -> None:
    source = KERNELS if module == "__init__" else f"{KERNELS}.{module}"
    bad = [i for i in ALL if i.source == source and (within(i.target, "triton") or within(i.target, TRITON))]
    assert not bad, "; ".join(map(str, bad))


def test_arrows_of_the_kernels() -> None:
    """functional → ops → backends ⇢ a backend's face → its launchers → its kernels; the specification knows none."""
    native, weights, memory = f"{KERNELS}.native", f"{KERNELS}.weights", f"{KERNELS}.memory"
    validation, reference, backends = (f"{KERNELS}.{name}" for name in ("validation", "reference", "backends"))
    launch, library, positions = (f"{native}.{name}" for name in ("launch", "library", "positions"))
    arrows = {
        f"{KERNELS}.functional": {KERNELS, f"{KERNELS}.ops", reference, validation, weights},
        f"{KERNELS}.ops": {KERNELS, backends, reference, memory, native, validation, weights},
        backends: {KERNELS, reference, native, library, validation, TRITON},
        f"{native}.backend": {KERNELS, reference, memory, native, launch, positions},
        launch: {library},
        positions: {reference},
        library: {memory},
        **{name: set() for name in (memory, reference, validation, weights)},
    }
    for source, allowed in arrows.items():
        assert any(i.source == source for i in ALL), source
        targets = [i for i in ALL if i.source == source and within(i.target, KERNELS)]
        bad = [i for i in targets if i.target not in allowed]
        assert not bad, "; ".join(map(str, bad))


def test_arrows_of_the_triton_kernels() -> None:
    """backend → plan, transform → stages → what they share; nobody below imports what orders it."""
    above = [f"{TRITON}.{name}" for name in ("backend", "plan", "transform")]
    stages = [i for i in ALL if within(i.source, TRITON) and i.source not in above]
    bad = [i for i in stages if i.target in above or i.target in (f"{KERNELS}.ops", f"{KERNELS}.functional")]
    assert not bad, "; ".join(map(str, bad))
    bad = [i for i in ALL if i.target == f"{TRITON}.backend" and i.source != f"{KERNELS}.backends"]
    assert not bad, "; ".join(map(str, bad))


def test_arrows_of_adaptive() -> None:
    bad = []
    for found in ALL:
        if outside_kernels(found.source) and outside_kernels(found.target):
            source, target = part_of(found.source), part_of(found.target)
            assert source in PARTS, f"{found.source} has no place among the arrows"
            late = not found.at_once and (found.source, found.target) in LATE
            if target != source and target not in PARTS[source] and not late:
                bad.append(found)
    assert not bad, "; ".join(map(str, bad))


def test_adaptive_never_imports_triton() -> None:
    bad = [i for i in ALL if outside_kernels(i.source) and (within(i.target, "triton") or within(i.target, TRITON))]
    assert not bad, "; ".join(map(str, bad))


def test_core_imports_only_torch_and_numpy() -> None:
    core = ("adaptive_window.model", KERNELS)
    allowed = sys.stdlib_module_names | {"torch", "numpy", "triton", "adaptive_window"}
    bad = [i for i in ALL if any(within(i.source, c) for c in core) and i.target.split(".")[0] not in allowed]
    assert not bad, "; ".join(map(str, bad))


def test_heavy_packages_wait_until_they_are_needed() -> None:
    late = {"adaptive_window.plots", "adaptive_window.page", "adaptive_window.hub.mixin"}  # themselves imported late
    ours = [i for i in ALL if not any(within(i.source, part) for part in late)]
    bad = [i for i in ours if i.at_once and i.target.split(".")[0] in HEAVY]
    tops = ("adaptive_window.page", "adaptive_window.hub.mixin")
    bad += [i for i in ours if i.at_once and any(within(i.target, top) for top in tops)]
    assert not bad, "; ".join(map(str, bad))


def test_no_kernels_version() -> None:
    """`kernels.__version__` would make a checkout on the path look like Hugging Face's package of that name."""
    assert "__version__" not in (ROOT / "kernels" / "__init__.py").read_text()


# Allows the standard library, adaptive_window, torch, numpy and what they require; every other package is missing.
BLOCKER = """
import importlib.metadata as metadata, re, sys

def closure(name, seen):
    if name in seen:
        return seen
    seen.add(name)
    for requirement in metadata.requires(name) or ():
        if "extra ==" not in requirement:
            dependency = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
            try:
                closure(metadata.metadata(dependency)["Name"], seen)
            except metadata.PackageNotFoundError:
                pass
    return seen

allowed = closure("torch", set()) | closure("numpy", set())
blocked = {top for top, owners in metadata.packages_distributions().items() if not allowed & set(owners)}
blocked = (blocked | {"triton"}) - {"adaptive_window"}
blocked = {top for top in blocked if not top.startswith("__editable__")}

class Hiding:
    # finds what another finder finds, blocked names excepted
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
assert {"safetensors", "soundfile", "matplotlib", "tqdm", "pytest", "triton"} <= blocked
"""


def fresh(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_core_runs_with_torch_and_numpy_alone() -> None:
    fresh(
        BLOCKER
        + """
import torch
import adaptive_window, adaptive_window.kernels as kernels
from adaptive_window import AdaptiveWindowCreativeAgent
x, places = torch.randn(2, 4, 30), torch.ones(2, 3)
assert kernels.resample_windows(x, places, places, 10).shape == (2, 3, 4, 10)
try:
    kernels.resample_windows(x, places, places, 10, backend="triton")
except RuntimeError as error:
    assert "triton package is not installed" in str(error), error
else:
    raise AssertionError("a backend that cannot run did not say so")
loaded = {name.split(".")[0] for name in sys.modules} & blocked
assert not loaded, loaded
"""
    )


def test_import_is_light() -> None:
    """`import adaptive_window` loads neither model nor triton nor any tool; the public functions load no triton."""
    fresh(
        """
import sys, adaptive_window
assert "torch" not in sys.modules, "import adaptive_window loads torch"
import adaptive_window.kernels, torch
x, places = torch.randn(2, 4, 30), torch.ones(2, 3)
adaptive_window.kernels.resample_windows(x, places, places, 10)
heavy = {"triton", "matplotlib", "soundfile", "tensorboard", "jsonargparse", "encodec", "torchaudio"} & set(sys.modules)
assert not heavy, heavy
"""
    )
