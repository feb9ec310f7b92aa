"""Is compressing latents 100 times faster than decoding, stretching and encoding again? Prints what it is here.

    python benchmarks/codec_claim.py

One 24 s clip of EnCodec latents (24 kHz model: `[1, 128, 1800]`, random weights, which cost the same time) is
compressed to 16 s both ways: by `resample_windows`, and by the codec's decoder, a phase vocoder (torchaudio) at 1.5
times the speed and the codec's encoder. The two do not give the same latents; this compares time, not sound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine, time_calls

from adaptive_window.kernels import resample_windows

RATE, HOP, SECONDS, SPEED = 24_000, 320, 24, 1.5
FFT, STRIDE = 1024, 256  # of the phase vocoder


def build(device: str) -> dict[str, Callable[[], object]]:
    """The two ways and the second's three parts; ImportError where encodec or torchaudio is missing."""
    import torchaudio
    from encodec import EncodecModel

    torch.manual_seed(0)
    codec = EncodecModel.encodec_model_24khz(pretrained=False).eval().to(device)
    frames = RATE // HOP * SECONDS
    window = int(frames / SPEED)
    latents = torch.randn(1, 128, frames, device=device)
    start, ratio = torch.zeros(1, 1, device=device), torch.full((1, 1), SPEED, device=device)
    stretch = torchaudio.transforms.TimeStretch(hop_length=STRIDE, n_freq=FFT // 2 + 1).to(device)
    hann = torch.hann_window(FFT, device=device)
    audio = torch.randn(1, 1, RATE * SECONDS, device=device) * 0.1
    shorter = audio[..., : int(RATE * SECONDS / SPEED)].contiguous()

    def vocoder(wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(wave[:, 0], FFT, STRIDE, window=hann, return_complex=True)
        return torch.istft(stretch(spectrum, SPEED), FFT, STRIDE, window=hann)[:, None]

    def through_audio() -> torch.Tensor:
        with torch.no_grad():
            return codec.encoder(vocoder(codec.decoder(latents)))

    def guarded(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                return call()

        return run

    return {
        "latents": guarded(lambda: resample_windows(latents, start, ratio, window)),
        "audio": through_audio,
        "audio: decode": guarded(lambda: codec.decoder(latents)),
        "audio: stretch": guarded(lambda: vocoder(audio)),
        "audio: encode": guarded(lambda: codec.encoder(shorter)),
    }


def measure(device: str, seconds: float = 20.0, fewest: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    calls = build(device)
    # the first takes a thousandth of the others' time: with them it would have few rounds
    alone = {"latents": calls.pop("latents")}
    timings = time_calls(alone, device, seconds / 10, fewest=10 * fewest) | time_calls(
        calls, device, seconds, fewest=fewest
    )
    result: dict[str, Any] = {name: timing.describe() for name, timing in timings.items()}
    ratio = result["audio"]["median"] / result["latents"]["median"]
    for name in result:
        say(f"{name:16}{1e3 * result[name]['median']:10.3f} ms  ({1e3 * result[name]['low']:.3f} to "
            f"{1e3 * result[name]['high']:.3f}, {result[name]['repetitions']} times)")  # fmt: skip
    say(f"compressing latents is {ratio:.0f} times as fast as decode, stretch, encode ({SECONDS} s to "
        f"{SECONDS / SPEED:.0f} s, one clip, random codec weights)")  # fmt: skip
    return {"times": result, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=20.0, help="time to spend measuring")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    result = {"machine": machine(options.device), "codec": measure(options.device, options.seconds)}
    print(result["machine"]["device"], result["machine"]["torch"], result["machine"]["date"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
