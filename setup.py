"""Installed names differ from folder names: `adaptive/` is `adaptive_window`, `kernels/` is `adaptive_window.kernels`.

Both folder names are taken on PyPI, and a top-level package called `kernels` silently replaces Hugging Face's package
of that name, which `transformers` imports.
"""

import hashlib
import platform
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

PACKAGE_DIR = {"adaptive_window": "adaptive", "adaptive_window.kernels": "kernels"}


def packages() -> list[str]:
    """Every package under its installed name."""
    names = []
    for installed, folder in PACKAGE_DIR.items():
        names += [installed, *(f"{installed}.{name}" for name in find_packages(folder))]
    return names


def extensions() -> list[Extension]:
    """The CPU kernels, where their compiler flags are known. Without a C compiler the package installs without them."""
    flags = {"x86_64": ["-mavx2", "-mfma"], "aarch64": []}.get(platform.machine())
    if flags is None or not sys.platform.startswith("linux"):
        return []
    folder = Path(PACKAGE_DIR["adaptive_window.kernels"], "native")
    files = [str(folder / name) for name in ("rows.h", "stages.h", "windows.c")]
    # kernels/native/library.py compares it, so that nobody calls functions that have changed since they were compiled
    digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    return [
        Extension(
            "adaptive_window.kernels.native._windows",
            sources=files[2:],
            depends=files[:2],
            define_macros=[("SOURCES", f'"{digest}"')],
            extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-Wall", "-Wextra", *flags],
            extra_link_args=["-fopenmp"],
            libraries=["m"],
            optional=True,
        )
    ]


ENCODEC = ["encodec>=0.1.1", "torchaudio==2.11.*", "torch<2.15"]
HUB = ["huggingface_hub>=0.25,<3"]
MLFLOW = ["mlflow>=2.16"]
PAGE = ["gradio>=6.31,<6.32", "plotly>=6.0,<8"]
TEST = [
    *ENCODEC,
    *HUB,
    *PAGE,
    "playwright>=1.48",
    "pytest>=8.2",
    "pytest-benchmark>=5.0",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "scipy>=1.11",
]

setup(
    package_dir=PACKAGE_DIR,
    packages=packages(),
    package_data={
        "adaptive_window": ["py.typed", "weights/*.safetensors"],
        "adaptive_window.page": ["*.css", "*.js"],
        "adaptive_window.kernels": ["py.typed"],
    },
    ext_modules=extensions(),
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "soundfile>=0.12",
        "soxr>=0.5",
        "safetensors>=0.4.3",
        "tqdm>=4.66",
        "jsonargparse>=4.35",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
    ],
    extras_require={
        "encodec": ENCODEC,
        "hub": HUB,
        "mlflow": MLFLOW,
        "page": PAGE,
        "test": TEST,
        "lint": ["ruff>=0.6", "mypy>=1.11"],
    },
)
