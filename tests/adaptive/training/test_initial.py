"""The weights that the package brings: what they are, and that commands use them and say so."""

import json
from dataclasses import replace

import pytest
import torch
from clips import ConvolutionCodec, small_config

from adaptive_window import AdaptiveWindowCreativeAgent, cli
from adaptive_window.audio.songs import synthesize_song, write_songs
from adaptive_window.errors import UsageError
from adaptive_window.training.checkpoint import build_agent, load_checkpoint
from adaptive_window.training.initial import (
    DEFAULT_WEIGHTS,
    begin_with,
    checkpoint_at,
    load_initial,
    sizes_of,
    strength_of,
)


def test_they_are_small_whole_and_exact_in_sixteen_bits():
    assert DEFAULT_WEIGHTS.stat().st_size <= 4_000_000
    checkpoint = load_checkpoint(DEFAULT_WEIGHTS)
    agent = build_agent(checkpoint, DEFAULT_WEIGHTS)
    for name, parameter in agent.named_parameters():
        stored = checkpoint.model[name]
        assert stored.dtype == torch.float16, name
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.half(), stored), name
    assert checkpoint.info["codec"]["name"] == "mel"
    assert not checkpoint.optimizer


def test_they_begin_a_run_whose_strength_follows_harmony():
    initial = load_initial("default")
    arguments = {**initial.info["agent"], "strength": "harmony"}
    agent = AdaptiveWindowCreativeAgent(**arguments)
    begin_with(agent, arguments, initial, "default")
    assert agent.window_selector.pull.tolist() == [1.0] * 3
    for name, value in initial.model.items():
        assert torch.equal(agent.state_dict()[name], value.to(agent.state_dict()[name].dtype)), name
    theirs = replace(initial, info={**initial.info, "agent": arguments})
    with pytest.raises(UsageError, match="its strength follows harmony, this run's is constant: set --strength"):
        begin_with(agent, initial.info["agent"], theirs, "default")


def test_strength_by_codec_and_selector(tmp_path):
    spectrum, decoded = ConvolutionCodec(False), ConvolutionCodec(True)
    content = small_config(tmp_path, selector="content")
    assert strength_of(content, spectrum) == "harmony"
    assert strength_of(content, decoded) == strength_of(small_config(tmp_path), spectrum) == "constant"
    assert strength_of(replace(content, strength="constant"), spectrum) == "constant"
    with pytest.raises(UsageError, match="--strength harmony needs --selector content and latents that are a spectrum"):
        strength_of(replace(content, strength="harmony"), decoded)


def test_names_of_weights(tmp_path):
    assert checkpoint_at(None) == checkpoint_at("default") == DEFAULT_WEIGHTS
    assert checkpoint_at(tmp_path / "a.safetensors") == tmp_path / "a.safetensors"


def test_a_run_that_does_not_fit_is_told_what_to_set():
    initial = load_initial("default")
    arguments = {**initial.info["agent"], "num_pairs": 5}
    agent = build_agent(initial, DEFAULT_WEIGHTS)
    with pytest.raises(UsageError, match="--init default: its num_pairs is 3, this run's 5: set --num-pairs"):
        begin_with(agent, arguments, initial, "default")
    with pytest.raises(UsageError, match="its selector is content, this run's mlp"):
        begin_with(agent, {**arguments, "selector": "mlp"}, initial, "default")
    mine = arguments.get("restore", "none")
    other = "none" if mine == "frame" else "frame"
    with pytest.raises(UsageError, match=f"its restore is {mine}, this run's {other}: set --restore"):
        begin_with(agent, {**arguments, "num_pairs": 3, "restore": other}, initial, "default")
    assert set(sizes_of(initial)) >= {"component_dim", "composer_dim"}


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    return write_songs(folder, 2, seed=300_000)


def test_two_songs_in_music_out(songs, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert cli.main(["compose", *map(str, songs), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "the default weights of the package" in printed
    report = json.loads(out.with_suffix(".json").read_text())
    heard = report["heard"]
    assert report["pick"] == "best"
    assert report["seconds"] == 16.0
    assert heard["fluctuation"] > 0.4  # no hiss
    assert heard["onsets_input"] > 0.5
    assert heard["harmony_target"] > 0.4
    assert heard["copies"] < 0.9
    assert {"conflict", "conflict_before"} <= set(heard)
    assert "; conflict " in printed
    assert set(report["tempo"]) == {"ratio", "beat", "found"}
    assert "fluctuation" in printed


def test_plot_says_which_weights(songs, tmp_path, capsys):
    assert cli.main(["plot", *map(str, songs), "-o", str(tmp_path / "w.png")]) == 0
    assert "the default weights of the package" in capsys.readouterr().out


def test_training_goes_on_from_them(songs, tmp_path, capsys):
    sizes = ["--max-steps", "1", "--batch-size", "1", "--clips-per-song", "1", "--no-tensorboard", "--examples", "0"]
    lengths = ["--clip-seconds", "6", "--window-seconds", "4", "--dropout", "0", "--learning-rate", "1e-9"]
    command = ["train", "--data", str(songs[0].parent), "--out", str(tmp_path / "run"), "--init", "default"]
    assert cli.main([*command, "--cache", str(tmp_path / "cache"), *sizes, *lengths]) == 0
    trained, default = (
        load_checkpoint(path).model for path in (tmp_path / "run" / "last.safetensors", DEFAULT_WEIGHTS)
    )
    for name, value in default.items():
        if "norm.running" not in name and "num_batches" not in name:
            assert torch.allclose(trained[name].float(), value.float(), atol=1e-6), name


def test_every_song_has_windows_of_its_own():
    from adaptive_window.audio.mel import MelCodec

    agent = build_agent(load_checkpoint(DEFAULT_WEIGHTS), DEFAULT_WEIGHTS).eval()
    clips = [
        MelCodec().encode(torch.from_numpy(synthesize_song(seed, sample_rate=16000).audio)[None, None])
        for seed in range(310_000, 310_004)
    ]
    x = torch.cat(clips)
    with torch.no_grad():
        windows = agent.window_selector(x, x.roll(1, 0))
    assert windows["start_input"].std(0).mean() > 25
