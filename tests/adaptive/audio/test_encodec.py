"""EnCodec from files in every published key layout, each checked against the `encodec` package's own networks.

The weights are random ones, written by this test in the layouts of encodec's checkpoint, audiocraft's export, Hugging
Face's safetensors (names from transformers' `convert_encodec_checkpoint_to_pytorch.py`), and torch's parametrizations.
"""

from __future__ import annotations

import copy
import logging
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptive_window.audio.codec import CodecUnavailable, load_codec
from adaptive_window.audio.encodec import EncodecCodec

pytest.importorskip("encodec", reason="the encodec package is an optional dependency", exc_type=ImportError)

# Hugging Face's name of each layer, beside encodec's: the first residual block of encoder and decoder, and what is not
# in a block. Blocks 4, 7, 10 (and 13 in the decoder) are named as the first.
ENCODER_LAYERS = {
    "encoder.model.0.conv.conv": "encoder.layers.0.conv",
    "encoder.model.3.conv.conv": "encoder.layers.3.conv",
    "encoder.model.6.conv.conv": "encoder.layers.6.conv",
    "encoder.model.9.conv.conv": "encoder.layers.9.conv",
    "encoder.model.12.conv.conv": "encoder.layers.12.conv",
    "encoder.model.13.lstm": "encoder.layers.13.lstm",
    "encoder.model.15.conv.conv": "encoder.layers.15.conv",
}
DECODER_LAYERS = {
    "decoder.model.0.conv.conv": "decoder.layers.0.conv",
    "decoder.model.1.lstm": "decoder.layers.1.lstm",
    "decoder.model.3.convtr.convtr": "decoder.layers.3.conv",
    "decoder.model.6.convtr.convtr": "decoder.layers.6.conv",
    "decoder.model.9.convtr.convtr": "decoder.layers.9.conv",
    "decoder.model.12.convtr.convtr": "decoder.layers.12.conv",
    "decoder.model.15.conv.conv": "decoder.layers.15.conv",
}
BLOCKS = {
    f"{part}.model.{index}.{inner}.conv.conv": f"{part}.layers.{index}.{inner}.conv"
    for part, indices in (("encoder", (1, 4, 7, 10)), ("decoder", (4, 7, 10, 13)))
    for index in indices
    for inner in ("block.1", "block.3", "shortcut")
}
HUGGING_FACE = ENCODER_LAYERS | DECODER_LAYERS | BLOCKS


def hugging_face(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        layer = next((ours for ours in HUGGING_FACE if key.startswith(f"{ours}.")), None)
        if layer is not None:
            renamed[f"{prefix}{HUGGING_FACE[layer]}{key.removeprefix(layer)}"] = value.clone()
    assert len(renamed) == sum(key.startswith(("encoder.", "decoder.")) for key in state)
    return renamed


class Published(nn.Module):
    """What the weights are published for: encodec's model at 24 kHz, and its parts with MusicGen's settings."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from encodec import EncodecModel
        from encodec.modules import SEANetDecoder, SEANetEncoder

        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of weight_norm, which encodec uses
            if name == "encodec-24khz":
                model = EncodecModel.encodec_model_24khz(pretrained=False)
                self.encoder, self.decoder, self.quantizer = model.encoder, model.decoder, model.quantizer
            else:
                settings = {"ratios": [8, 5, 4, 4], "n_filters": 64, "causal": False, "true_skip": True}
                self.encoder, self.decoder = SEANetEncoder(**settings), SEANetDecoder(**settings)
        for parameter in self.parameters():  # so that no weight_g equals its |weight_v|, as it does when fresh
            parameter.data *= torch.empty_like(parameter).uniform_(0.8, 1.25)
        self.eval()


@pytest.fixture(scope="module", params=["encodec-24khz", "encodec-32khz"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def published(name: str) -> Published:
    return Published(name)


def assert_equal(codec: EncodecCodec, published: Published) -> None:
    audio = 0.1 * torch.randn(1, 1, codec.hop * 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents, expected = codec.encode(audio), published.encoder(audio)
        # Folded weights differ by one rounding each (2^-24); the outputs of some 25 layers by a small multiple.
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        back, expected = codec.decode(latents), published.decoder(latents)
        torch.testing.assert_close(
            back, expected[..., : audio.shape[-1]], rtol=0, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.proof
def test_every_key_layout_loads(name: str, published: Published, tmp_path: Path) -> None:
    state = published.state_dict()
    path = tmp_path / "official.th"
    torch.save(state, path)
    codec = load_codec(name, weights=path)
    assert isinstance(codec, EncodecCodec)
    assert_equal(codec, published)

    torch.save({"best_state": state, "xp.cfg": "sample_rate: 32000", "version": "1.0.0", "exported": True}, path)
    fingerprints = {codec.fingerprint, load_codec(name, weights=path).fingerprint}
    torch.save({"best_state": {"model": state}}, path)
    fingerprints.add(load_codec(name, weights=path).fingerprint)

    for prefix in ("", "audio_encoder."):  # EncodecModel, and the same inside MusicgenForConditionalGeneration
        save_file(hugging_face(state, prefix), tmp_path / "model.safetensors")
        fingerprints.add(load_codec(name, weights=tmp_path).fingerprint)

    parametrized = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in hugging_face(state).items()
    }
    save_file(parametrized, tmp_path / "model.safetensors")
    fingerprints.add(load_codec(name, weights=tmp_path / "model.safetensors").fingerprint)
    assert len(fingerprints) == 1  # the very same weights, whatever they were called


def test_hub_caches_are_searched(
    name: str, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="an optional dependency")
    file_of = {"encodec-24khz": "encodec_24khz-d7cc33bc.th", "encodec-32khz": "encodec_32khz.safetensors"}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CodecUnavailable, match="not allowed"):
        load_codec(name, fetch=False)

    repository = tmp_path / "hub" / f"models--facebook--{name.replace('-', '_')}"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    save_file(hugging_face(published.state_dict()), snapshot / "model.safetensors")
    fingerprint = load_codec(name, fetch=False).fingerprint

    (snapshot / "model.safetensors").unlink()
    local = tmp_path / "torch" / "hub" / "checkpoints" / file_of[name]
    local.parent.mkdir(parents=True)
    if local.suffix == ".th":
        torch.save(published.state_dict(), local)
    else:
        save_file(hugging_face(published.state_dict()), local)
    assert load_codec(name, fetch=False).fingerprint == fingerprint


@pytest.fixture(scope="module")
def codec() -> EncodecCodec:
    codec = load_codec("encodec-24khz", random=True)
    assert isinstance(codec, EncodecCodec)
    return codec


@pytest.mark.parametrize(("which", "rate", "hop", "clip"), [("24", 24000, 320, 1800), ("32", 32000, 640, 1200)])
def test_frame_rates_and_lengths(which: str, rate: int, hop: int, clip: int) -> None:
    codec = load_codec(f"encodec-{which}khz", random=True)
    assert (codec.sample_rate, codec.hop, codec.frames(24), codec.dim) == (rate, hop, clip, 128)
    with torch.no_grad():
        for samples, frames in ((hop * 10, 10), (hop * 10 + 1, 11), (hop * 3 - 1, 3)):
            latents = codec.encode(torch.zeros(1, 1, samples))
            assert latents.shape == (1, 128, frames)
            assert codec.decode(latents).shape == (1, 1, frames * hop)


def test_random_weights_are_seeded_and_announced_on_every_load(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        state = torch.random.get_rng_state()
        codecs = [load_codec("encodec-24khz", random=True) for _ in range(2)]
        assert torch.equal(torch.random.get_rng_state(), state)
    assert caplog.text.count("RANDOM WEIGHTS") == 2
    assert codecs[0].random
    assert codecs[0].fingerprint == codecs[1].fingerprint
    with pytest.raises(ValueError, match="weights must be None"):
        load_codec("encodec-24khz", random=True, weights="a.th")


def test_decoding_carries_gradients_and_trains_nothing(codec: EncodecCodec) -> None:
    assert codec.differentiable
    latents = torch.randn(1, 128, 8, requires_grad=True)
    codec.decode(latents).square().sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs().sum(dim=1) > 0).all()  # every frame
    parameters = [*codec.encoder.parameters(), *codec.decoder.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    modules = [*codec.encoder.modules(), *codec.decoder.modules()]
    assert not any(module.training for module in modules if not isinstance(module, nn.LSTM))
    recurrent = [module for module in modules if isinstance(module, nn.LSTM)]
    assert len(recurrent) == 2
    # cuDNN refuses the backward pass of an LSTM in evaluation mode; without dropout training mode computes alike.
    assert all(module.training and module.dropout == 0 for module in recurrent)


@pytest.mark.gpu
def test_decoding_carries_gradients_on_a_gpu(codec: EncodecCodec) -> None:
    latents = torch.randn(1, 128, 8)
    grads = []
    for device in ("cpu", "cuda"):
        moved = latents.to(device).requires_grad_()
        copy.deepcopy(codec).to(device).decode(moved).square().sum().backward()
        assert moved.grad is not None
        grads.append(moved.grad.cpu())
    # Convolutions may run in TF32 there: 2^-11 relative per product, through some 15 layers.
    assert (grads[1] - grads[0]).norm() < 2e-2 * grads[0].norm()


def test_gradient_equals_a_difference_quotient(codec: EncodecCodec) -> None:
    exact = copy.deepcopy(codec)
    exact.decoder.double()
    latents = torch.randn(1, 128, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(latents)
    exact.decoder(latents).square().sum().backward()
    assert latents.grad is not None
    step = 1e-6
    with torch.no_grad():
        above, below = (exact.decoder(latents + sign * step * direction).square().sum() for sign in (1, -1))
    torch.testing.assert_close((latents.grad * direction).sum(), (above - below) / (2 * step), rtol=1e-5, atol=0)


def test_autocast_does_not_reach_inside(codec: EncodecCodec) -> None:
    audio = torch.randn(1, 1, 3200)
    with torch.no_grad():
        plain = codec.encode(audio)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(codec.encode(audio), plain)


def test_copies_and_pickles(codec: EncodecCodec) -> None:
    audio = torch.randn(1, 1, 3200)
    with torch.no_grad():
        for other in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
            assert torch.equal(other.encode(audio), codec.encode(audio))
            assert other.fingerprint == codec.fingerprint


def test_weights_of_the_other_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "official.th"
    torch.save(Published("encodec-24khz").state_dict(), path)
    with pytest.raises(CodecUnavailable, match=r"official\.th.*not the encoder of encodec-32khz"):
        load_codec("encodec-32khz", weights=path)


def test_without_the_package_the_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "encodec.modules", None)
    with pytest.raises(CodecUnavailable, match=r"torch 2\.11 to 2\.14 \(here: torch .*adaptive-window\[encodec\]"):
        load_codec("encodec-24khz", random=True)
