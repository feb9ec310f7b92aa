"""`--selector` reaches the agent, and the checkpoint knows it: compose, plot and resume build the same one."""

import torch
from clips import SMALL_AGENT, Clips, ConvolutionCodec, small_config, smooth_latents

from adaptive_window.model import CorrelationSelector, WindowSelector
from adaptive_window.training.checkpoint import build_agent, load_checkpoint
from adaptive_window.training.loop import Trainer


def test_the_checkpoint_keeps_the_selector(tmp_path):
    clips = Clips(smooth_latents(2, seed=1), smooth_latents(2, seed=2))
    for name, kind in (("correlation", CorrelationSelector), ("mlp", WindowSelector)):
        config = small_config(tmp_path / name, selector=name)
        trainer = Trainer(config, ConvolutionCodec(), clips, clips, **SMALL_AGENT)
        assert isinstance(trainer.agent.window_selector, kind)
        path = trainer.save("last.safetensors")
        loaded = build_agent(load_checkpoint(path), path)
        assert isinstance(loaded.window_selector, kind)
        for key, value in trainer.agent.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)
    assert small_config(tmp_path).selector == "mlp"  # the default, whose keys are the original's
