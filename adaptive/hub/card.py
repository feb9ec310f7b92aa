"""The model card: what the hub lists of an agent, and what a reader has to know before using it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LIBRARY = "adaptive-window"
TAGS = ("adaptive-window", "audio", "latents", "music", "pytorch_model_hub_mixin")
CODEC_LICENSES = {
    "encodec-24khz": "The `encodec` package (0.1.1 on PyPI), which runs this codec, is CC BY-NC 4.0.",
    "encodec-32khz": "The codec's published weights and the `encodec` package (0.1.1 on PyPI) are CC BY-NC 4.0.",
}
UNSAID = "not stated"


def model_card(config: Mapping[str, Any], parameters: int) -> str:
    """Markdown with the hub's front matter, of what `config.json` holds.

    https://huggingface.co/docs/hub/model-cards: `library_name`, `license`, `pipeline_tag`, `tags`.
    """
    agent, codec, license = config["agent"], config["codec"], config["license"]
    tags = sorted({*TAGS, *([codec["name"]] if codec else [])})
    front = {"library_name": LIBRARY, "license": license or "unknown", "pipeline_tag": "audio-to-audio", "tags": tags}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]  # JSON is YAML
    rate = codec["frame_rate"] if codec else None
    window, clip = agent["window_frames"], config["clip_frames"]
    rows = {
        "codec": f"{codec['name']} (fingerprint {codec['fingerprint']})" if codec else UNSAID,
        "frame rate": f"{rate:g} frames/s" if rate else UNSAID,
        "licence of the weights": license or UNSAID,
        "clip": _length(clip, rate) if clip else UNSAID,
        "window": _length(window, rate),
        "pairs of windows": agent["num_pairs"],
        "ratio": f"between 1 and {agent['max_ratio']:g}",
        "selector": agent["selector"],
        "parameters": f"{parameters:,}",
        "written by": f"{LIBRARY} {config['version']}",
    }
    lines += [
        "# Adaptive windows for audio latents",
        "",
        "An agent that chooses pairs of windows in two songs' latents, cuts and resamples them, and composes a new "
        "pattern of each pair. It is of use with the latents of its codec alone.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "```python",
        "from adaptive_window import AdaptiveWindowCreativeAgent",
        "",
        'agent = AdaptiveWindowCreativeAgent.from_pretrained("owner/name")  # this repository, or a folder of it',
        f"pattern = agent.compose(x_input, x_target)  # [B, {agent['encoding_dim']}, T] twice -> "
        f"[B, {agent['encoding_dim']}, {window}]",
        "```",
    ]
    if codec and codec["random"]:
        lines += ["", "**Trained on a codec with random weights: what it makes is noise.**"]
    if codec and codec["name"] in CODEC_LICENSES:
        lines += ["", CODEC_LICENSES[codec["name"]]]
    return "\n".join(lines) + "\n"


def _length(frames: int, rate: float | None) -> str:
    return f"{frames} frames" + (f" ({frames / rate:g} s)" if rate else "")
