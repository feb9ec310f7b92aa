"""Installed names differ from folder names: `adaptive/` is `adaptive_window`, `kernels/` is `adaptive_window.kernels`.

Both folder names are taken on PyPI, and a top-level package called `kernels` silently replaces Hugging Face's package
of that name, which `transformers` imports.
"""

from setuptools import find_packages, setup

PACKAGE_DIR = {"adaptive_window": "adaptive", "adaptive_window.kernels": "kernels"}


def packages() -> list[str]:
    """Every package under its installed name."""
    names = []
    for installed, folder in PACKAGE_DIR.items():
        names += [installed, *(f"{installed}.{name}" for name in find_packages(folder))]
    return names


ENCODEC = ["encodec>=0.1.1", "torchaudio==2.11.*", "torch<2.15"]
HUB = ["huggingface_hub>=0.25"]
MLFLOW = ["mlflow>=2.16"]
TEST = [
    *ENCODEC,
    "pytest>=8.2",
    "pytest-benchmark>=5.0",
    "hypothesis>=6.100",
    "scipy>=1.11",
]

setup(
    package_dir=PACKAGE_DIR,
    packages=packages(),
    package_data={"adaptive_window": ["py.typed"], "adaptive_window.kernels": ["py.typed"]},
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
        "demo": ["gradio>=4.44"],
        "test": TEST,
        "lint": ["ruff>=0.6", "mypy>=1.11"],
    },
)
