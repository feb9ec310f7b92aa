"""Agents written to folders and read back: the same outputs to the bit; and the other places they are read from."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from agent_cases import CHANNELS, FRAMES, WINDOW, small_agent
from page_server import small_checkpoint
from safetensors.torch import load_file

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.errors import UsageError
from adaptive_window.inference.compose import open_engine
from adaptive_window.storage import outputs
from adaptive_window.training import checkpoint as files

FILES = {"README.md", "config.json", "model.safetensors"}


def made(**options) -> AdaptiveWindowCreativeAgent:
    sizes = {"kernel_size": 3, "component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}
    agent = AdaptiveWindowCreativeAgent(CHANNELS, 2, window_frames=WINDOW, **sizes, **options)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        for module in agent.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    return agent.eval()


def outcome(agent: AdaptiveWindowCreativeAgent, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, CHANNELS, FRAMES, generator=generator).to(dtype) for _ in range(2))
    with torch.no_grad():
        outputs, losses, metadata = agent(x, y)
    return [*outputs, *losses, *metadata["windows"].values()]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"selector": "mlp", "max_ratio": 1.25, "max_strength": 0.5, "dropout": 0.3}, torch.float32),
        ({"selector": "correlation", "novelty": "corrected", "backend": "reference"}, torch.float64),
        ({"selector": "content", "frame_rate": 12.5}, torch.bfloat16),
    ],
)
def test_a_round_trip_changes_no_bit(tmp_path, options, dtype):
    agent = made(**options).to(dtype)
    agent.save_pretrained(tmp_path / "agent")
    read = AdaptiveWindowCreativeAgent.from_pretrained(tmp_path / "agent", backend=options.get("backend", "auto"))
    assert read.arguments == agent.arguments
    assert not read.training
    for ours, theirs in zip(outcome(read, dtype), outcome(agent, dtype), strict=True):
        assert torch.equal(ours, theirs)


def test_the_files(tmp_path):
    agent = made(selector="content", frame_rate=50.0)
    agent.save_pretrained(str(tmp_path), codec=MelCodec(), clip_frames=60, license="cc-by-4.0")
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, outputs.LEDGER}
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == agent.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["agent"] == {name: value for name, value in agent.arguments.items() if name != "backend"}
    assert config["codec"] == files.codec_info(MelCodec())
    assert (config["clip_frames"], config["license"], config["dtype"]) == (60, "cc-by-4.0", "float32")
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert (head["library_name"], head["license"]) == ("adaptive-window", "cc-by-4.0")
    assert {"mel", "music", "pytorch_model_hub_mixin"} <= set(head["tags"])
    assert "| codec | mel (fingerprint" in text
    assert "| frame rate | 50 frames/s |" in text
    assert "| licence of the weights | cc-by-4.0 |" in text
    assert "| clip | 60 frames (1.2 s) |" in text


def test_what_is_known_stays_with_the_agent(tmp_path):
    made().save_pretrained(tmp_path / "a", codec=MelCodec(), clip_frames=60, license="mit")
    read = AdaptiveWindowCreativeAgent.from_pretrained(tmp_path / "a")
    assert read.about == {"codec": files.codec_info(MelCodec()), "clip_frames": 60, "license": "mit"}
    read.save_pretrained(tmp_path / "b", license="cc0-1.0")
    assert AdaptiveWindowCreativeAgent.from_pretrained(tmp_path / "b").about == {**read.about, "license": "cc0-1.0"}


def test_an_agent_of_which_nothing_is_known_says_so(tmp_path):
    made().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert 'license: "unknown"' in card
    assert "| codec | not stated |" in card


def test_the_package_s_own_weights():
    agent = AdaptiveWindowCreativeAgent.from_pretrained("default")
    assert agent.about["codec"]["name"] == "mel"
    assert agent.about["license"] == "mit"
    assert agent.arguments["composer_dim"] == 128


def test_a_run_and_its_checkpoint(tmp_path):
    agent = made()
    arguments = {name: value for name, value in agent.arguments.items() if name != "novelty"}  # of before there was one
    info = {"agent": arguments, "codec": files.codec_info(MelCodec()), "clip_frames": FRAMES}
    files.save_checkpoint(tmp_path / files.BEST, files.Checkpoint(agent.state_dict(), info))
    for place in (tmp_path, tmp_path / files.BEST):
        read = AdaptiveWindowCreativeAgent.from_pretrained(place)
        assert read.about == {"codec": info["codec"], "clip_frames": FRAMES, "license": None}
        assert all(map(torch.equal, outcome(read), outcome(agent)))


def test_commands_take_a_published_folder(tmp_path):
    checkpoint = small_checkpoint(tmp_path / "small.safetensors")
    agent = AdaptiveWindowCreativeAgent.from_pretrained(checkpoint)
    agent.save_pretrained(tmp_path / "published", codec=MelCodec())
    ours, theirs = (open_engine(path, device="cpu") for path in (tmp_path / "published", checkpoint))
    assert (ours.clip_frames, ours.window_seconds) == (theirs.clip_frames, theirs.window_seconds)
    assert all(map(torch.equal, ours.agent.state_dict().values(), theirs.agent.state_dict().values()))
    made().save_pretrained(tmp_path / "unsaid")
    with pytest.raises(UsageError, match="unsaid does not say on which codec's latents"):
        open_engine(tmp_path / "unsaid", device="cpu")


def test_a_subclass_reads_its_own_kind(tmp_path):
    class Mine(AdaptiveWindowCreativeAgent):
        pass

    made().save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine


def test_saving_again_replaces_its_own_files_and_no_others(tmp_path):
    made().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("my own words")
    second = made()
    second.save_pretrained(tmp_path, license="mit")
    assert (tmp_path / "README.md").read_text() == "my own words"
    assert all(map(torch.equal, outcome(AdaptiveWindowCreativeAgent.from_pretrained(tmp_path)), outcome(second)))
    (tmp_path / "model.safetensors").write_bytes(b"another model's")
    with pytest.raises(ValueError, match=r"model\.safetensors' exists, and this command did not write it"):
        second.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, overwrite=True)
    AdaptiveWindowCreativeAgent.from_pretrained(tmp_path)


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    broken = made()
    with torch.no_grad():
        broken.tonality_reducer_input.norm.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 not finite \(tonality_reducer_input.norm.bias\)"):
        broken.save_pretrained(tmp_path / "nan")
    adapted = made()
    torch.nn.utils.parametrizations.weight_norm(adapted.creative_agent.component_selector[0])
    with pytest.raises(ValueError, match=r"1 missing .*; 2 unknown"):
        adapted.save_pretrained(tmp_path / "adapted")
    mixed = made()
    mixed.creative_agent.half()
    with pytest.raises(ValueError, match=r"must be of one dtype .* got \['float16', 'float32'\]"):
        mixed.save_pretrained(tmp_path / "mixed")
    with pytest.raises(ValueError, match="license must be an identifier"):
        made().save_pretrained(tmp_path / "license", license="MIT: do\nwhat you like")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["nowhere", "no/such/folder", "../agent", "a b/c", ""])
def test_a_name_of_nothing(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="name must be 'default', a folder, a checkpoint's file or a repository"):
        AdaptiveWindowCreativeAgent.from_pretrained(wrong or Path("sub/nothing/at/all"))
    with pytest.raises(TypeError, match="name must be a str or a path, got int"):
        AdaptiveWindowCreativeAgent.from_pretrained(3)


def test_a_copied_agent_keeps_what_it_was_built_with():
    import copy

    agent = small_agent("reference", torch.device("cpu"))
    assert copy.deepcopy(agent).arguments == agent.arguments
    assert agent.arguments["backend"] == "reference"
