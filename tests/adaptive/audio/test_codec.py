"""`load_codec`: names, options that do not fit, and what each refusal says."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import torch

from adaptive_window.audio import encodec, interface, mel, weights
from adaptive_window.audio.codec import CODECS, Codec, CodecChoiceError, digest, load_codec
from adaptive_window.config.bounds import CodecName


def test_mel_is_loaded_by_name() -> None:
    codec = load_codec("mel")
    assert isinstance(codec, Codec)
    assert codec.name == "mel"
    assert codec.device == torch.device("cpu")
    assert codec.to("cpu") is codec


def test_a_codec_is_no_module() -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codec = load_codec("mel")

    assert Holder().state_dict() == {}


@pytest.mark.parametrize("name", ["opus", "", "encodec"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"{', '.join(CODECS)}, got '{name}'"):
        load_codec(name)


def test_48_khz_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="1 s chunks"):
        load_codec("encodec-48khz")


def test_mel_takes_no_weights_and_no_random_ones() -> None:
    with pytest.raises(ValueError, match="weights must be None"):
        load_codec("mel", weights="weights.th")
    with pytest.raises(ValueError, match="random must be False"):
        load_codec("mel", random=True)


def test_random_weights_exclude_given_ones() -> None:
    with pytest.raises(CodecChoiceError, match=r"weights must be None .* got 'here'"):
        load_codec("encodec-24khz", weights="here", random=True)


def test_the_commands_offer_every_codec() -> None:
    assert typing.get_args(CodecName) == CODECS


def test_the_interface_stands_alone() -> None:
    """Codecs and what uses them import the interface; the factory imports the codecs. No circle."""
    source = Path(interface.__file__).read_text()
    assert "from .codec" not in source
    assert "from .mel" not in source
    for module in (encodec, mel, weights):
        assert "from .codec" not in Path(module.__file__).read_text()


def test_digest_sees_names_values_types_and_shapes() -> None:
    base = digest(["x"], {"w": torch.zeros(2, 3)})
    assert base == digest(["x"], {"w": torch.zeros(2, 3)})
    assert len(base) == 16
    others = [
        digest(["y"], {"w": torch.zeros(2, 3)}),
        digest(["x"], {"v": torch.zeros(2, 3)}),
        digest(["x"], {"w": torch.zeros(3, 2)}),
        digest(["x"], {"w": torch.zeros(2, 3, dtype=torch.int32)}),
        digest(["x"], {"w": torch.full((2, 3), 1e-45)}),
    ]
    assert len({base, *others}) == 6
