"""The package, its model and its ops need torch and numpy, and nothing else: not even Triton."""

import subprocess
import sys

SCRIPT = """
import sys

# besides the standard library: torch, numpy, and what torch itself declares as its dependencies
ALLOWED = {"adaptive_window", "torch", "torchgen", "functorch", "numpy", "typing_extensions", "sympy", "mpmath",
           "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "setuptools", "_distutils_hack", "cuda", "nvidia"}


class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top in sys.stdlib_module_names or top.startswith("__editable__"):
            return None
        raise ModuleNotFoundError(f"blocked: {name}", name=name)


before = set(sys.modules)
sys.meta_path.insert(0, Block())
for name in ("triton", "matplotlib", "soundfile"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} was not blocked")

import adaptive_window

assert "torch" not in sys.modules, "importing the package alone must not load torch"
assert sorted(adaptive_window.__all__) == adaptive_window.__all__
for name in adaptive_window.__all__:
    getattr(adaptive_window, name)
assert adaptive_window.__version__[0].isdigit()
assert set(adaptive_window.__all__) <= set(dir(adaptive_window))
try:
    adaptive_window.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise SystemExit("an unknown name must be an AttributeError")

import torch
from adaptive_window.kernels import resample_windows
from adaptive_window.model import losses

agent = adaptive_window.AdaptiveWindowCreativeAgent(
    8, window_frames=16, component_dim=4, composer_heads=2, composer_layers=1, composer_dim=16
)
x, y = torch.randn(2, 2, 8, 24)
outputs, pair_losses, metadata = agent(x, y)
(torch.stack(pair_losses).mean() + losses.window_overlap_penalty(metadata["windows"], 16)).backward()
print("ran", tuple(outputs[0].shape))
"""


def test_only_torch_and_numpy() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "ran (2, 8, 16)" in ran.stdout
