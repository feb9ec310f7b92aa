"""Planted tempos and places are found; pairs stay apart; windows stay inside and off their bounds."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.songs import synthesize_song
from adaptive_window.audio.synthesis import synthesize_drums
from adaptive_window.losses.scale_space import gaussian_blur
from adaptive_window.model.content_selector import ContentSelector
from adaptive_window.model.tempo import FOUND
from adaptive_window.training.listening import Listener

T, W = 1200, 800


def encoded(audio: np.ndarray) -> Tensor:
    return MelCodec().encode(torch.from_numpy(audio)[None, None])


@pytest.fixture(scope="module")
def songs() -> Tensor:
    """`[8, 128, T]`."""
    return torch.cat([encoded(synthesize_song(seed, sample_rate=16000).audio) for seed in range(8)])


@pytest.fixture(scope="module")
def selector() -> ContentSelector:
    return ContentSelector()


@torch.no_grad()
@pytest.mark.parametrize(("slow", "fast"), [(100.0, 125.0), (100.0, 112.0)])
def test_finds_the_ratio_of_two_tempos_either_way(selector: ContentSelector, slow: float, fast: float) -> None:
    x, y = (encoded(synthesize_drums(seed, bpm, sample_rate=16000)) for seed, bpm in ((3, slow), (7, fast)))
    for a, b, wanted in ((x, y, fast / slow), (y, x, slow / fast)):
        tempo, beat = selector.tempo(a, b)
        assert tempo.exp().item() == pytest.approx(wanted, rel=0.02)
        assert beat.item() > FOUND
        windows = selector(a, b)
        assert torch.allclose(windows["ratio_input"] / windows["ratio_target"], torch.full((1, 3), wanted), rtol=0.02)


@torch.no_grad()
@pytest.mark.parametrize(("seed", "slow", "fast"), [(210008, 83.168, 116.947), (210004, 99.853, 141.820)])
def test_a_tempo_is_not_taken_for_its_double(selector: ContentSelector, seed: int, slow: float, fast: float) -> None:
    """Songs of different styles whose rhythms fit each other no better at their own ratio than at half of it."""
    x, y = (encoded(synthesize_song(seed + k, sample_rate=16000, bpm=bpm).audio) for k, bpm in enumerate((slow, fast)))
    for a, b, wanted in ((x, y, fast / slow), (y, x, slow / fast)):
        tempo, beat = selector.tempo(a, b)
        assert tempo.exp().item() == pytest.approx(wanted, rel=0.03)
        assert beat.item() > FOUND


@torch.no_grad()
def test_where_three_starts_have_no_room_two_of_them_do(selector: ContentSelector, songs: Tensor) -> None:
    """A tempo of 1.4 leaves 1.1 s of a clip: one gap of a second, not two of half."""
    ratio = torch.full((len(songs), 3), 1.43)
    start, _ = selector._starts(songs, songs.roll(1, 0), ratio, torch.full_like(ratio, 1.05))
    apart = (start[:, [0, 0, 1]] - start[:, [1, 2, 2]]).abs() >= 50
    assert (apart.sum(1) == 2).all()


@torch.no_grad()
def test_nothing_is_found_in_noise(selector: ContentSelector, songs: Tensor) -> None:
    generator = np.random.default_rng(0)
    noise = torch.cat([encoded(0.1 * generator.standard_normal(24 * 16000).astype(np.float32)) for _ in range(4)])
    for target in (songs[:4], noise.roll(1, 0)):
        tempo, beat = selector.tempo(noise, target)
        assert beat.max().item() < 0.5 * FOUND
        assert tempo.abs().max().item() < 0.02


@torch.no_grad()
def test_windows_are_inside_apart_and_the_songs_own(selector: ContentSelector, songs: Tensor) -> None:
    windows = selector(songs, songs.roll(1, 0))
    assert set(windows) == {"start_input", "start_target", "ratio_input", "ratio_target", "strength"}
    for stream in ("input", "target"):
        start, ratio = windows[f"start_{stream}"], windows[f"ratio_{stream}"]
        room = T - ratio * W
        assert (start > 0.02 * room).all()
        assert (start < 0.98 * room).all()
        assert (ratio > 1).all()
        assert (ratio < 1.5).all()
        wide = room.amin(1) > 150  # 3 s
        assert wide.sum() >= 4
        nearest = start.sort(1).values.diff(dim=1).amin(1)[wide]
        assert nearest.min() > 45  # about a second
        assert start.std(0).mean() > 50  # over songs


@torch.no_grad()
def test_a_planted_stretch_is_where_the_best_pair_looks(selector: ContentSelector) -> None:
    """The same 20 s at different places of two clips that hold something else besides."""
    generator = torch.Generator().manual_seed(0)
    x, y, common = (gaussian_blur(torch.randn(1, 128, T, generator=generator), 20.0) for _ in range(3))
    x[..., :1000] = common[..., :1000]
    y[..., 200:] = common[..., :1000]
    windows = selector(x, y)
    assert (windows["start_target"] - windows["start_input"])[0, 0].item() == pytest.approx(200, abs=15)


def test_everything_is_learned_through(songs: Tensor) -> None:
    selector = ContentSelector().double()
    x, y = (z.double().requires_grad_() for z in (songs[:2], songs[2:4]))
    windows = selector(x, y)
    sum(value.square().sum() for value in windows.values()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in selector.parameters())
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@torch.no_grad()
def test_short_clips_and_clips_of_one_window(songs: Tensor) -> None:
    whole = ContentSelector(window_frames=T)(songs[:1], songs[1:2])
    assert whole["start_input"].abs().max().item() == 0
    assert torch.allclose(whole["ratio_input"], torch.ones(1, 3))
    windows = ContentSelector(8, 2, window_frames=20)(torch.randn(2, 8, 30), torch.randn(2, 8, 30))
    assert (windows["start_input"] + windows["ratio_input"] * 20 <= 30 + 1e-4).all()


def chords(*semitones: int) -> Tensor:
    """`[1, 128, 300]`: six seconds of chords on A that many semitones up."""
    t = np.arange(6 * 16000) / 16000
    notes = [440 * 2 ** ((k + step) / 12) for k in semitones for step in (0, 4, 7)]
    sound = sum(0.05 * 0.6**h * np.sin(2 * np.pi * (h + 1) * hz * t) for hz in notes for h in range(5))
    return encoded((sound + 1e-3 * np.random.default_rng(0).standard_normal(len(t))).astype(np.float32))


def test_strength_follows_the_clash_of_two_windows_and_is_learned() -> None:
    selector = ContentSelector(128, 2, window_frames=200, strength="harmony", max_strength=0.9)
    x, drums = chords(0), encoded(synthesize_drums(3, 100, seconds=6.0, sample_rate=16000))
    pairs = torch.cat([x, x, drums, x]), torch.cat([x, chords(1), x, chords(0)])
    assert torch.allclose(selector(*pairs)["strength"], torch.tensor(0.45))  # it has not been told what it hears
    selector.hear(Listener(MelCodec()).classes)
    strength = selector(*pairs)["strength"]
    assert (strength[0] < 0.1).all()  # one chord
    assert (strength[1] > 0.7).all()  # a semitone apart
    assert (strength[2] - 0.45).abs().max() < 0.1  # drums have no key
    strength[1].sum().backward()
    assert selector.pull is not None
    for parameter in (selector.pull, selector.strength):
        assert parameter.grad is not None
        assert (parameter.grad > 0).all()
    assert selector.share.grad is None  # places are data to it


def test_constant_strength_has_the_keys_it_had() -> None:
    constant, harmony = (ContentSelector(strength=name).state_dict() for name in ("constant", "harmony"))
    assert set(harmony) - set(constant) == {"classes", "pull"}
    assert set(ContentSelector().state_dict()) == set(constant)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="strength must be 'constant' or 'harmony', got 'loud'"):
        ContentSelector(strength="loud")
    with pytest.raises(ValueError, match='strength must be "harmony" for the selector to hear'):
        ContentSelector().hear(torch.zeros(12, 128))
    with pytest.raises(ValueError, match="classes must have shape"):
        ContentSelector(strength="harmony").hear(torch.zeros(12, 64))
    with pytest.raises(ValueError, match="max_ratio must be at least 1 for the content selector"):
        ContentSelector(max_ratio=0.5)
    with pytest.raises(ValueError, match="frame_rate must be positive"):
        ContentSelector(frame_rate=0.0)


def test_an_agent_takes_it_and_compiles_in_one_graph() -> None:
    agent = AdaptiveWindowCreativeAgent(
        8,
        2,
        window_frames=40,
        component_dim=4,
        composer_heads=2,
        composer_layers=1,
        composer_dim=16,
        selector="content",
        strength="harmony",
    ).eval()
    x, y = torch.randn(2, 2, 8, 60)
    outputs, _, metadata = agent(x, y)
    assert outputs[0].shape == (2, 8, 40)
    assert math.isfinite(float(metadata["pairs"][1]["ratio_input_mean"]))
    explained = torch._dynamo.explain(agent.window_selector)(x, y)
    assert explained.graph_break_count == 0
