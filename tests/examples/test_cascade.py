"""examples/cascade.py: how large it is, what its loss reaches, and a run of the small one."""

import json

import cascade
import pytest
import torch
from fake_mlflow import fake_mlflow
from two_processes import torchrun

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.songs import write_songs
from adaptive_window.losses import multi_scale_latent_loss

FRAMES, WINDOW = 60, 40
WINDOWS = ("start_input", "start_target", "ratio_input", "ratio_target", "tonality_strength")


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    write_songs(folder, 4, seconds=6.0)
    return folder


def small(creative: str = "first") -> cascade.CreativeModel:
    """With stages that do something, as after some training."""
    sizes = cascade.SIZES["small"]
    agent = AdaptiveWindowCreativeAgent(128, 3, window_frames=WINDOW, dropout=0.0, **sizes["agent"])
    model = cascade.CreativeModel(agent, cascade.Cascade(128, 3, WINDOW, **sizes["cascade"]), creative)
    for stage in model.cascade.stages:
        torch.nn.init.normal_(stage.out.weight, std=0.02)
    torch.nn.init.normal_(agent.window_selector.mlp[8].weight, std=0.05)  # fresh, gradients end at the last layer
    return model


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 2, 128, FRAMES).cumsum(-1).mul(0.1).unbind()


def test_the_whole_one_has_about_forty_million_parameters():
    whole = cascade.Cascade(128, 3, 800, **cascade.SIZES["full"]["cascade"])
    assert 38e6 < sum(parameter.numel() for parameter in whole.parameters()) < 42e6


def test_untrained_it_passes_the_creative_output_on():
    model = small("mean")
    for stage in model.cascade.stages:
        torch.nn.init.zeros_(stage.out.weight)
    x, y = clips()
    expected = torch.stack(model.eval().agent(x, y)[0]).mean(0)
    patterns, losses, metadata = model(x, y)
    assert len(patterns) == len(losses) == 3
    assert torch.equal(patterns[2], expected)
    assert metadata["windows"]["start_target"].shape == (2, 3)


@pytest.mark.parametrize("creative", ["first", "mean"])
def test_its_own_loss_reaches_the_whole_selector(creative):
    model, (x, y) = small(creative), clips()
    patterns, _, metadata = model(x, y)
    assert metadata["windows"]["start_input"].shape == (2, len(patterns))
    multi_scale_latent_loss(patterns[0], y[..., :WINDOW], (1, 2, 4)).backward()  # nothing of the agent's own losses
    gradients = {name: p.grad.abs().amax() for name, p in model.agent.window_selector.named_parameters()}
    assert min(gradients.values()) > 0
    rows = model.agent.window_selector.mlp[8].bias.grad.view(3, 5)
    assert (rows[0] != 0).all()  # every parameter of the pair's windows


def test_gradients_go_through_the_stages(monkeypatch):
    """Also where the agent's outputs are data: by the windows that the stages see."""
    model, (x, y) = small(), clips()
    plain = model.agent.forward

    def detached(*given):
        outputs, losses, metadata = plain(*given)
        return [output.detach() for output in outputs], losses, metadata

    monkeypatch.setattr(model.agent, "forward", detached)
    (pattern,), _, _ = model(x, y)
    multi_scale_latent_loss(pattern, y[..., :WINDOW], (1, 2, 4)).backward()
    rows = model.agent.window_selector.mlp[8].bias.grad.view(3, 5)
    assert (rows[:, [0, 2]] != 0).all()
    assert (rows[:, [1, 3, 4]] == 0).all()  # the target's windows and the strength act in the agent alone


def test_a_run_leaves_weights_and_the_windows_by_name(songs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = fake_mlflow(monkeypatch)
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--data", str(songs), "--size", "small", "--max-steps", "2", "--batch-size", "2"]
    model = cascade.main([*arguments, "--mlflow", "--novelty-weight", "0.5"])
    logged = [(call[1][0], call[2]["step"]) for call in calls if call[0] == "log_metrics"]
    assert [step for _, step in logged] == [1, 2]
    names = {f"train/pair{pair}/{name}_mean" for pair in range(3) for name in WINDOWS}
    assert names <= logged[0][0].keys()
    for figures, _ in logged:
        expected = figures["train/spectral"] + 0.5 * figures["train/novelty"]
        assert figures["train/loss"] == pytest.approx(expected, rel=1e-6)
    agent = AdaptiveWindowCreativeAgent.from_pretrained(out / "agent")
    assert agent.about["codec"]["name"] == "mel"
    assert all(map(torch.equal, agent.state_dict().values(), model.agent.state_dict().values()))
    assert all(stage.out.weight.any() for stage in model.cascade.stages)
    assert (out / "cascade.safetensors").exists()


@pytest.mark.proof
def test_compiled(songs, tmp_path, monkeypatch, capsys):
    """Agent, cascade and losses are one graph. What TorchInductor makes of such a graph is test_compiling's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, options=None, **given: own(f, backend="aot_eager", **given))
    shared = ["--data", str(songs), "--size", "small", "--max-steps", "2", "--batch-size", "2"]
    cascade.main(["--out", str(tmp_path / "out"), *shared, "--compile", "on"])
    said = capsys.readouterr().err
    assert said.count("compiled: agent and losses (keeping little), with the backward pass") == 1
    assert "0 graph breaks" in said
    assert "step 2: loss" in said


@pytest.mark.proof
def test_two_processes(songs, tmp_path, monkeypatch):
    """Each step is logged once, and rank 0's weights are those of both."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shared = ["--data", str(songs), "--size", "small", "--max-steps", "2", "--batch-size", "2", "--creative", "mean"]
    done = torchrun(cascade.__file__, "--out", tmp_path / "out", *shared)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 2: loss") == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["train/refused"] == 0 for line in lines)
    AdaptiveWindowCreativeAgent.from_pretrained(tmp_path / "out" / "agent")
