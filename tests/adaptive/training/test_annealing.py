"""What is blurred in training, when, and that a step's blur is a function of its number alone."""

from itertools import pairwise

import pytest
import torch
from clips import WINDOW, ConvolutionCodec, small_config, smooth_latents

from adaptive_window.config import UsageError
from adaptive_window.losses.matching import matching_loss
from adaptive_window.training.objective import Objective
from adaptive_window.training.terms import blur_at


def test_the_blur_falls_to_zero_at_the_stated_share_of_the_run(tmp_path):
    config = small_config(tmp_path, matching_weight=1.0, anneal_blur=64.0, anneal_until=0.75, max_steps=100)
    blurs = [blur_at(config, step) for step in range(100)]
    assert blurs[0] == 64.0
    assert blurs[37] == pytest.approx(16.0)  # half way through 0 ... 74
    assert all(a > b for a, b in pairwise(blurs[:75]))
    assert blurs[74:] == [0.0] * 26
    assert blur_at(config, None) == 0.0


def test_off_by_default_and_at_once_with_no_share(tmp_path):
    assert blur_at(small_config(tmp_path), 0) == 0.0
    config = small_config(tmp_path, matching_weight=1.0, anneal_blur=64.0, anneal_until=0.0)
    assert blur_at(config, 0) == 0.0


def test_only_matching_is_blurred(tmp_path):
    config = small_config(
        tmp_path, matching_weight=2.0, anneal_blur=8.0, anneal_until=1.0, max_steps=10, envelope_copy_weight=1.0,
        rhythm_weight=1.0, decode_seconds=4.0,
    )  # fmt: skip
    x, y = smooth_latents(2, seed=1), smooth_latents(2, seed=2)
    windows = {f"start_{name}": torch.full((2, 3), 4.3, requires_grad=True) for name in ("input", "target")}
    windows |= {f"ratio_{name}": torch.full((2, 3), 1.1, requires_grad=True) for name in ("input", "target")}
    outputs = list(torch.randn(3, 2, 128, WINDOW, generator=torch.Generator().manual_seed(0)))
    objective = Objective(ConvolutionCodec(), config)

    def measure(step):
        return objective(outputs, [torch.tensor(0.5)] * 3, windows, x, y, step=step)

    (loss, parts), (_, held_out) = measure(0), measure(None)
    torch.testing.assert_close(parts["matching"], matching_loss(x, y, windows, WINDOW, sigma=8.0))
    torch.testing.assert_close(held_out["matching"], matching_loss(x, y, windows, WINDOW))
    assert abs(parts["matching"] - held_out["matching"]) > 1e-3
    assert abs(parts["rhythm"] - held_out["rhythm"]) > 1e-3  # blurred on its axis of lags instead
    for name in ("spectral", "envelope_copy"):
        assert torch.equal(parts[name], held_out[name])
    others = parts["spectral"] + 0.1 * parts["novelty"] + parts["envelope_copy"] + parts["rhythm"]
    torch.testing.assert_close(loss, others + 2 * parts["matching"])
    parts["matching"].backward()
    assert all((value.grad != 0).all() for value in windows.values())


def test_a_blur_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--anneal-blur .* add --matching-weight"):
        Objective(ConvolutionCodec(), small_config(tmp_path, anneal_blur=8.0))
