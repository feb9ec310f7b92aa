import pytest
import torch
from clips import WINDOW, ConvolutionCodec, small_config, smooth_latents

from adaptive_window.errors import UsageError
from adaptive_window.kernels import resample_windows
from adaptive_window.training.objective import Objective

PAIRS = 3


@pytest.fixture
def problem():
    x, y = smooth_latents(2, seed=1), smooth_latents(2, seed=2)
    generator = torch.Generator().manual_seed(3)

    def draw(low, high):
        return (low + (high - low) * torch.rand(2, PAIRS, generator=generator)).requires_grad_()

    windows = {
        "start_input": draw(1, 9),
        "start_target": draw(1, 9),
        "ratio_input": draw(1.05, 1.2),
        "ratio_target": draw(1.05, 1.2),
        "strength": draw(0.2, 0.8),
    }
    outputs = [torch.randn(2, 128, WINDOW, generator=generator).requires_grad_() for _ in range(PAIRS)]
    losses = [torch.tensor(0.5 + k, requires_grad=True) for k in range(PAIRS)]
    return outputs, losses, windows, x, y


def objective(tmp_path, codec=None, **changes):
    changes.setdefault("decode_seconds", 4.0)  # the whole window: no stretch is drawn, so calls can be compared
    return Objective(codec or ConvolutionCodec(), small_config(tmp_path, **changes))


def test_loss_is_the_documented_sum(tmp_path, problem):
    loss, parts = objective(tmp_path, spectral_weight=2.0, novelty_weight=0.25)(*problem)
    assert parts["novelty"].item() == pytest.approx(1.5)  # the mean of 0.5, 1.5, 2.5
    assert loss.item() == pytest.approx(2.0 * parts["spectral"].item() + 0.25 * 1.5, rel=1e-6)
    assert set(parts) == {"spectral", "novelty"}


@pytest.mark.parametrize("spectral", ["decoded", "latent"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_spectral_gradient_reaches_every_pattern(tmp_path, problem, spectral, differentiable):
    outputs, *_ = problem
    measure = objective(tmp_path, ConvolutionCodec(differentiable), spectral=spectral, novelty_weight=0.0)
    loss, _ = measure(*problem)
    loss.backward()
    for output in outputs:
        assert output.grad is not None
        assert output.grad.abs().amax(dim=(1, 2)).min() > 0  # in every sample


@pytest.mark.parametrize("spectral", ["decoded", "latent"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_spectral_part_is_zero_at_the_targets_own_windows(tmp_path, problem, spectral, differentiable):
    _, losses, windows, x, y = problem
    wanted = resample_windows(y, windows["start_target"], windows["ratio_target"], WINDOW).detach()
    measure = objective(tmp_path, ConvolutionCodec(differentiable), spectral=spectral)
    _, parts = measure(list(wanted.unbind(1)), losses, windows, x, y)
    assert parts["spectral"].item() == pytest.approx(0.0, abs=1e-6)


def test_target_window_is_data_to_the_spectral_part(tmp_path, problem):
    _, _, windows, *_ = problem
    loss, _ = objective(tmp_path)(*problem)
    loss.backward()
    assert all(value.grad is None for value in windows.values())


def test_decoded_loss_listens_to_the_stretch_asked_for(tmp_path, problem):
    lengths = []

    class Listening(ConvolutionCodec):
        def decode(self, latents):
            lengths.append(latents.shape[-1])
            return super().decode(latents)

    objective(tmp_path, Listening(), spectral="decoded", decode_seconds=1.5)(*problem)
    assert lengths == [15, 15]
    lengths.clear()
    objective(tmp_path, Listening(), spectral="decoded", decode_seconds=60.0)(*problem)
    assert lengths == [WINDOW, WINDOW]


@pytest.mark.parametrize("asked", [{"harmony_from": "target"}, {"rhythm_from": "input", "harmony_from": "target"}])
def test_every_term_that_listens_hears_the_stretch_asked_for(tmp_path, problem, asked):
    heard = []

    class Listening(ConvolutionCodec):
        def decode(self, latents):
            heard.append(latents.shape[-1])
            return super().decode(latents)

    weights = {"envelope_copy_weight": 1.0, "spread_weight": 1.0, "conflict_weight": 1.0, "spectral": "decoded"}
    transformed = {song: torch.randn(2, PAIRS, 128, WINDOW) for song in ("input", "target")}
    for codec in (Listening(), Listening(differentiable=False)):
        loss = objective(tmp_path, codec, decode_seconds=1.5, **weights, **asked)
        _, parts = loss(*problem, transformed=transformed)
        assert {"harmony", "conflict", "spread", "envelope_copy"} <= set(parts)
    assert heard
    assert set(heard) == {15}


def test_latent_loss_never_decodes(tmp_path, problem):
    class Silent(ConvolutionCodec):
        def decode(self, latents):
            raise AssertionError("decoded")

    objective(tmp_path, Silent(), spectral="latent")(*problem)


REGULARIZERS = {
    "reconstruction_weight": ("reconstruction", {"start_target", "ratio_target"}),
    "overlap_weight": ("overlap", {"start_input", "start_target", "ratio_input", "ratio_target"}),
    "ratio_diversity_weight": ("ratio_diversity", {"ratio_input", "ratio_target"}),
    "rhythm_weight": ("rhythm", {"start_input", "start_target", "ratio_input", "ratio_target"}),
}


@pytest.mark.parametrize("weight", REGULARIZERS)
def test_regularizer_counts_by_its_weight_and_moves_its_windows(tmp_path, problem, weight):
    name, moved = REGULARIZERS[weight]
    *_, windows, _, _ = problem
    plain, _ = objective(tmp_path)(*problem)
    loss, parts = objective(tmp_path, **{weight: 0.5})(*problem)
    sign = -1 if name == "ratio_diversity" else 1  # diversity is rewarded
    assert loss.item() - plain.item() == pytest.approx(sign * 0.5 * parts[name].item(), rel=1e-3, abs=1e-5)
    parts[name].backward()
    for key in moved:
        assert windows[key].grad is not None
        assert windows[key].grad.abs().max() > 0


def test_ratio_spread_that_does_not_fit_the_range_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--ratio-spread 0.3 for 3 pairs needs ratios up to 1.6, above --max-ratio"):
        objective(tmp_path, ratio_diversity_weight=1.0, ratio_spread=0.3)
    objective(tmp_path, ratio_spread=0.3)  # not asked for: no matter
    objective(tmp_path, ratio_diversity_weight=1.0, ratio_spread=0.25)


def test_ratio_spread_is_what_diversity_counts_up_to(tmp_path, problem):
    """Ratios here differ by at most 0.15: less than either spread."""
    far, near = (
        objective(tmp_path, ratio_diversity_weight=1.0, ratio_spread=spread)(*problem)[1]["ratio_diversity"].item()
        for spread in (0.2, 0.25)
    )
    assert 0.2 * far == pytest.approx(0.25 * near, rel=1e-5)


@pytest.mark.parametrize("differentiable", [True, False])
def test_envelope_copy_counts_by_its_weight_and_reaches_the_patterns(tmp_path, problem, differentiable):
    outputs, *_ = problem
    codec = ConvolutionCodec(differentiable)
    plain, _ = objective(tmp_path, codec)(*problem)
    loss, parts = objective(tmp_path, codec, envelope_copy_weight=0.5)(*problem)
    assert loss.item() - plain.item() == pytest.approx(0.5 * parts["envelope_copy"].item(), rel=1e-3, abs=1e-5)
    parts["envelope_copy"].backward()
    assert outputs[0].grad.abs().max() > 0
    for name, value in problem[2].items():
        assert name == "strength" or value.grad.abs().max() > 0


def test_terms_are_a_table_of_names():
    from adaptive_window.training.terms import TERMS

    names = [term.name for term in TERMS]
    assert len(set(names)) == len(names)
    assert {"spectral", "novelty", "onsets", "harmony", "overlap"} <= set(names)


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize(("rhythm", "harmony"), [("input", "target"), ("target", "input"), ("none", "target")])
def test_composing_terms_are_in_the_sum_and_reach_patterns_alone(tmp_path, problem, differentiable, rhythm, harmony):
    measure = objective(
        tmp_path, ConvolutionCodec(differentiable), rhythm_from=rhythm, harmony_from=harmony, onset_weight=0.7
    )
    loss, parts = measure(*problem)
    wanted = parts["spectral"] + 0.1 * parts["novelty"] + 0.5 * parts["harmony"]
    if rhythm != "none":
        wanted = wanted + 0.7 * parts["onsets"]
    assert ("onsets" in parts) == (rhythm != "none")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    for output in problem[0]:
        assert output.grad.abs().amax(dim=(1, 2)).min() > 0
    assert all(value.grad is None for value in problem[2].values())


def test_regrooved_windows_are_the_optimum(tmp_path, problem):
    """What the pattern is asked to be has nearly the rhythm of the one and the harmony of the other."""
    from adaptive_window.losses.composing import regrooved

    _, losses, windows, x, y = problem
    measure = objective(tmp_path, ConvolutionCodec(False), rhythm_from="input", harmony_from="target")
    harmony, grooved = (
        resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], WINDOW).detach()
        for clip, name in ((y, "target"), (x, "input"))
    )
    _, parts = measure(list(regrooved(harmony, grooved, measure.listen.slow).unbind(1)), losses, windows, x, y)
    assert parts["spectral"].item() == pytest.approx(0.0, abs=1e-6)
    _, copied = measure(list(harmony.unbind(1)), losses, windows, x, y)
    assert parts["onsets"].item() < copied["onsets"].item() - 0.1


def test_novelty_comes_late(tmp_path, problem):
    measure = objective(tmp_path, novelty_after=0.5, max_steps=100, novelty_weight=1.0)
    losses = [measure(*problem, step=step)[0].item() for step in (0, 25, 50, None)]
    parts = measure(*problem)[1]
    novelty = parts["novelty"].item()
    for loss, share in zip(losses, (0.0, 0.5, 1.0, 1.0), strict=True):
        assert loss == pytest.approx(parts["spectral"].item() + share * novelty, rel=1e-5)


@pytest.mark.parametrize("differentiable", [True, False])
def test_measures_know_a_copy(tmp_path, problem, differentiable):
    *_, windows, x, y = problem
    measure = objective(tmp_path, ConvolutionCodec(differentiable))
    copy = resample_windows(y, windows["start_target"], windows["ratio_target"], WINDOW)
    found = measure.measures(copy, windows, x, y)
    assert found["follows_target"].shape == (2, PAIRS)
    assert found["follows_target"].min() > 0.99
    assert found["fluctuation"].mean().item() == pytest.approx(1.0, abs=0.01)


def conflict_problem(problem):
    """The problem, with windows transformed by a strength and by what stands for the transform's weights."""
    _, _, windows, x, y = problem
    shift = torch.randn(128, 1, generator=torch.Generator().manual_seed(7)).requires_grad_()

    def transformed():
        blend = windows["strength"][..., None, None]
        cuts = {
            name: resample_windows(clip, windows[f"start_{name}"].detach(), windows[f"ratio_{name}"].detach(), WINDOW)
            for name, clip in (("input", x), ("target", y))
        }
        return {name: cut + blend * shift for name, cut in cuts.items()}

    return shift, transformed


@pytest.mark.parametrize("differentiable", [True, False])
def test_conflict_acts_through_strength_and_weights_alone(tmp_path, problem, differentiable):
    outputs, _, windows, *_ = problem
    shift, transformed = conflict_problem(problem)
    measure = objective(tmp_path, ConvolutionCodec(differentiable), conflict_weight=0.5)
    assert measure.agent_options == {"transformed": True}
    loss, parts = measure(*problem, transformed=transformed())
    plain, _ = objective(tmp_path, ConvolutionCodec(differentiable))(*problem)
    assert loss.item() - plain.item() == pytest.approx(0.5 * parts["conflict"].item(), rel=1e-3)
    parts["conflict"].backward()
    assert windows["strength"].grad.abs().min() > 0  # every sample's every pair
    assert shift.grad.abs().max() > 0
    assert all(value.grad is None for name, value in windows.items() if name != "strength")
    assert all(output.grad is None for output in outputs)


def test_conflict_has_the_weight_of_harmony_unless_it_has_its_own(tmp_path, problem):
    _, transformed = conflict_problem(problem)
    given = transformed()

    def share(**weights):
        loss, parts = objective(tmp_path, ConvolutionCodec(False), **weights)(*problem, transformed=given)
        plain, _ = objective(tmp_path, ConvolutionCodec(False))(*problem)
        return (loss - plain).item() / parts["conflict"].item() if "conflict" in parts else 0.0

    assert share(conflict_weight=None, harmony_weight=2.0) == pytest.approx(2.0, rel=1e-3)
    assert share(conflict_weight=0.25, harmony_weight=2.0) == pytest.approx(0.25, rel=1e-3)
    assert share(conflict_weight=0.0, harmony_weight=2.0) == share(conflict_weight=None, harmony_weight=0.0) == 0
    assert objective(tmp_path, conflict_weight=0.0).agent_options == {}
    with pytest.raises(ValueError, match="transformed must be the agent's transformed windows"):
        objective(tmp_path, ConvolutionCodec(False), conflict_weight=1.0)(*problem)


@pytest.mark.parametrize("differentiable", [True, False])
def test_conflict_is_measured_before_and_after(tmp_path, problem, differentiable):
    outputs, _, windows, x, y = problem
    _, transformed = conflict_problem(problem)
    measure = objective(tmp_path, ConvolutionCodec(differentiable))
    patterns = torch.stack(outputs, 1)
    found = measure.measures(patterns, windows, x, y, transformed())
    assert found["conflict"].shape == found["conflict_before"].shape == (2, PAIRS)
    assert (found["conflict"] - found["conflict_before"]).abs().max() > 0
    still = {
        name: resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], WINDOW)
        for name, clip in (("input", x), ("target", y))
    }
    found = measure.measures(patterns, windows, x, y, still)
    assert torch.allclose(found["conflict"], found["conflict_before"])
