"""EnCodec's continuous latents (before quantization) at 24 kHz, 75 frames/s, and 32 kHz (MusicGen's), 50 frames/s.

The networks are the `encodec` package's own SEANet parts. Licences: `encodec` 0.1.1 on PyPI states CC BY-NC 4.0, and
the 32 kHz weights, published with MusicGen, are CC BY-NC 4.0 as well. Neither is part of this project.

Source: A. Défossez, J. Copet, G. Synnaeve, Y. Adi, "High Fidelity Neural Audio Compression", arXiv:2210.13438. The
32 kHz model's settings are those of `config.json` in facebook/encodec_32khz. (audiocraft's training configuration,
`encodec_large_nq4_s640`, agrees but for zeros in place of reflection at a clip's ends.)
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import remove_weight_norm

from .interface import Codec, CodecChoiceError, CodecUnavailable, digest
from .weights import Source, locate, read_state

log = logging.getLogger(__name__)

RANDOM_SEED = 0
_CONTEXT_SECONDS = 2.0


@dataclass(frozen=True)
class _Spec:
    sample_rate: int
    hop: int
    network: dict[str, Any]  # arguments of SEANetEncoder and SEANetDecoder
    source: Source


SPECS: dict[str, _Spec] = {
    "encodec-24khz": _Spec(
        24000,
        320,
        {"ratios": [8, 5, 4, 2], "n_filters": 32, "causal": True, "true_skip": False},
        Source(
            file_names=("encodec_24khz-d7cc33bc.th", "model.safetensors", "pytorch_model.bin"),
            hub=(("facebook/encodec_24khz", "model.safetensors"), ("facebook/encodec_24khz", "pytorch_model.bin")),
            url="https://dl.fbaipublicfiles.com/encodec/v0/encodec_24khz-d7cc33bc.th",
            saved_as="encodec_24khz-d7cc33bc.th",
            sha256="d7cc33bc",
        ),
    ),
    "encodec-32khz": _Spec(
        32000,
        640,
        {"ratios": [8, 5, 4, 4], "n_filters": 64, "causal": False, "true_skip": True},
        Source(
            file_names=(
                "encodec_32khz.safetensors",
                "model.safetensors",
                "compression_state_dict.bin",
                "pytorch_model.bin",
            ),
            hub=(
                ("facebook/encodec_32khz", "model.safetensors"),
                ("facebook/encodec_32khz", "pytorch_model.bin"),
                ("facebook/musicgen-small", "compression_state_dict.bin"),
            ),
            url="https://huggingface.co/facebook/encodec_32khz/resolve/main/model.safetensors",
            saved_as="encodec_32khz.safetensors",
        ),
    ),
}


class EncodecCodec(Codec):
    """Encoder and decoder with their weights, frozen, in float32. `decode` carries gradients to the latents."""

    differentiable = True

    def __init__(self, name: str, encoder: nn.Module, decoder: nn.Module, random: bool) -> None:
        spec = SPECS[name]
        self.name, self.sample_rate, self.hop, self.random = name, spec.sample_rate, spec.hop, random
        self.context = self.frames(_CONTEXT_SECONDS)
        self.encoder, self.decoder = encoder, decoder

    @cached_property
    def fingerprint(self) -> str:
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        state = {f"{part}.{key}": value for part, net in parts.items() for key, value in net.state_dict().items()}
        return digest([self.name], state)

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def to(self, device: str | torch.device) -> EncodecCodec:
        self.encoder.to(device)
        self.decoder.to(device)
        return self

    def _encode(self, audio: Tensor) -> Tensor:
        return self.encoder(audio)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def load_encodec(name: str, *, weights: str | Path | None, random: bool, fetch: bool, timeout: float) -> EncodecCodec:
    """`codec.load_codec` for the EnCodec models."""
    if random and weights is not None:
        raise CodecChoiceError(f"weights must be None for a codec with random ones, got {str(weights)!r}")
    spec = SPECS[name]
    # Before the networks are built: what is missing is said at once.
    path = None if random else locate(name, spec.source, weights, fetch, timeout)
    encoder, decoder = _build(spec.network)
    if path is not None:
        _load(name, encoder, decoder, path)
    else:
        log.warning(
            "%s: RANDOM WEIGHTS, as asked for. Its latents mean nothing and what it decodes is noise; whatever is made "
            "with it is good for nothing but testing the machinery.",
            name,
        )
    return EncodecCodec(name, encoder, decoder, random)


def _build(network: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """SEANet encoder and decoder with seeded random weights, frozen, without their weight normalization.

    Nothing trains here, and a plain weight g v / |v| gives the same output, while the old `weight_norm` that the
    package uses stands in the way of copying and pickling.
    """
    try:
        from encodec.modules import SEANetDecoder, SEANetEncoder
    except Exception as error:  # torchaudio beside a torch it was not built for raises OSError or RuntimeError, too
        raise CodecUnavailable(
            f"the encodec package cannot be imported ({type(error).__name__}: {error}). It needs torchaudio, whose "
            f"last release, 2.11, goes with torch 2.11 to 2.14 (here: torch {torch.__version__}): "
            'pip install "adaptive-window[encodec]". The mel codec needs neither.'
        ) from error
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated", category=FutureWarning)
        torch.manual_seed(RANDOM_SEED)
        encoder = SEANetEncoder(channels=1, dimension=Codec.dim, **network)
        decoder = SEANetDecoder(channels=1, dimension=Codec.dim, **network)
    for net in (encoder, decoder):
        net.eval()
        for module in net.modules():
            if hasattr(module, "weight_g"):
                remove_weight_norm(module)
            if isinstance(module, nn.LSTM):
                # cuDNN gives no gradients in evaluation mode; in an LSTM without dropout both modes compute alike.
                module.train()
        net.requires_grad_(False)  # the weights just multiplied out are new parameters
    return encoder, decoder


def _load(name: str, encoder: nn.Module, decoder: nn.Module, path: Path) -> None:
    state = _plain_weights(_native_keys(read_state(path)))
    for part, network in (("encoder", encoder), ("decoder", decoder)):
        own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        try:
            network.load_state_dict(own, strict=True)
        except RuntimeError as error:
            lines = str(error).splitlines()
            what = " ".join(line.strip() for line in lines[1:])[:400]
            raise CodecUnavailable(f"{str(path)!r}: not the {part} of {name}. {what}") from error


_FIRST_KEY = re.compile(r"(.*)encoder\.(?:model\.0\.conv\.conv|layers\.0\.conv)\.bias")
_HUGGING_FACE_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(?:(block\.\d+|shortcut)\.)?(conv|lstm)\.(.+)")


def _native_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder's and decoder's keys as the encodec package names them, without what stands before them.

    Hugging Face's `EncodecModel` says `layers` for `model`, has one `conv` where encodec has `conv.conv`, and calls the
    decoder's transposed convolutions, which are neither its first nor its last layer nor in a block, `conv` as well,
    for `convtr.convtr`; the LSTM's names are equal.
    """
    prefixes = [match[1] for key in state if (match := _FIRST_KEY.fullmatch(key))]
    prefix = min(prefixes, key=len, default="")
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    matches = {key: match for key in own if (match := _HUGGING_FACE_KEY.fullmatch(key))}
    last = max((int(match[2]) for match in matches.values() if match[1] == "decoder"), default=0)
    native = {}
    for key, value in own.items():
        if match := matches.get(key):
            part, index, inner, kind, rest = match.groups()
            upsampling = part == "decoder" and inner is None and int(index) not in (0, last)
            kind = {"conv": "convtr.convtr" if upsampling else "conv.conv", "lstm": "lstm"}[kind]
            key = ".".join([part, "model", index, *([inner] if inner else []), kind, rest])
        native[key] = value
    return native


_NORM_KEYS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def _plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight normalization multiplied out, w = g v / |v| with the norm over all axes but the first (T. Salimans and
    D. Kingma, arXiv:1602.07868), from the keys of torch's old or its present `weight_norm`."""
    plain = dict(state)
    for g_name, v_name in _NORM_KEYS:
        for g_key in [key for key in state if key.endswith(g_name)]:
            stem = g_key.removesuffix(g_name)
            if stem + v_name in plain:
                g, v = plain.pop(g_key).float(), plain.pop(stem + v_name).float()
                plain[f"{stem}weight"] = v * (
                    g / torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
                )
    return plain
