"""The names and signatures that users rely on. A change here is a change of the interface: say so in the changelog."""

from __future__ import annotations

import inspect

import pytest

import adaptive_window
from adaptive_window import kernels

WEIGHTS = "depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias"
SIGNATURES = {
    "resample_windows": "x, start, ratio, window, *, backend='auto'",
    "tonality_blend": f"y, strength, {WEIGHTS}, *, eps=1e-05, restore='none', backend='auto'",
    "windowed_tonality": f"x, start, ratio, strength, {WEIGHTS}, window, *, eps=1e-05, restore='none', backend='auto'",
}


REFINE_WINDOWS = (
    "x, y, window_frames, *, start_x=None, ratio_x=None, start_y=None, ratio_y=None, move=('x',), features='latent', "
    "restarts=4, levels=16, steps_per_level=13, blur=64.0, max_ratio=1.5, backend='auto'"
)


def bare(function: object) -> str:
    """The signature without annotations."""
    assert callable(function)
    signature = inspect.signature(function)
    empty = inspect.Signature.empty
    parameters = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=empty)).strip("()")


def test_kernels_export_three_functions() -> None:
    assert sorted(kernels.__all__) == sorted(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    assert bare(getattr(kernels, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_documentation_names_every_argument(name: str) -> None:
    function = getattr(kernels, name)
    documentation = inspect.getdoc(function) or ""
    if name == "windowed_tonality":  # refers to the other two
        documentation += (inspect.getdoc(kernels.resample_windows) or "") + (
            inspect.getdoc(kernels.tonality_blend) or ""
        )
    missing = [argument for argument in inspect.signature(function).parameters if argument not in documentation]
    assert not missing


def test_signature_of_refine_windows() -> None:
    assert bare(adaptive_window.refine_windows) == REFINE_WINDOWS
    documentation = inspect.getdoc(adaptive_window.refine_windows) or ""
    assert all(name in documentation for name in inspect.signature(adaptive_window.refine_windows).parameters)


def test_package_exports_the_modules_and_the_search() -> None:
    assert set(adaptive_window.__all__) >= {
        "AdaptiveWindowCreativeAgent",
        "CompositionalCreativeAgent",
        "TemporalCompressor",
        "TonalityReducer",
        "WindowSelector",
        "refine_windows",
    }
    for name in adaptive_window.__all__:
        assert getattr(adaptive_window, name) is not None
        assert name in dir(adaptive_window)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        adaptive_window.nothing  # noqa: B018 - the access is the test
