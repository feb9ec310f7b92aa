"""Compiled steps: what is compiled, that it is the same step, and what happens where the compiler fails.

Most take Dynamo and AOTAutograd with the graphs run as they are: tracing, guards, recompilation, functionalization and
the partition of forward and backward pass are the same, and no C++ is compiled. Inductor's own code is among the
proofs.
"""

import math
import re
import shutil

import pytest
import torch
from clips import SMALL_AGENT, Clips, ConvolutionCodec, small_config, smooth_latents
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop as nop
from torch._dynamo.utils import counters
from torch._functorch.partitioners import min_cut_rematerialization_partition

from adaptive_window.errors import UsageError
from adaptive_window.training import checkpoint
from adaptive_window.training.compiling import CompileError
from adaptive_window.training.logging import RunLog
from adaptive_window.training.loop import Trainer

EXACT = {"dropout": 0.0}  # compiled code draws other random numbers


@pytest.fixture
def without_inductor(monkeypatch):
    """Counts what is compiled anew: `compilations` grows with every graph that reaches the backend."""
    torch._dynamo.reset()
    compilations = []

    own = torch.compile

    def compiled(f, *, options=None, **given):
        partition = (options or {}).get("custom_partitioner_fn", min_cut_rematerialization_partition)
        as_is = aot_autograd(fw_compiler=nop, bw_compiler=nop, partition_fn=partition)

        def backend(graph, inputs):
            compilations.append(len(inputs))
            return as_is(graph, inputs)

        return own(f, backend=backend, **given)

    monkeypatch.setattr(torch, "compile", compiled)
    yield compilations
    torch._dynamo.reset()


def make(out, codec=None, clips=2, **options):
    agent = {**SMALL_AGENT, **{k: options.pop(k) for k in list(options) if k in ("dropout", "composer_layers")}}
    data = Clips(smooth_latents(clips, seed=1), smooth_latents(clips, seed=2))
    return Trainer(small_config(out, **options), codec or ConvolutionCodec(), data, data, **agent)


def run(trainer, out):
    log = RunLog(out, {}, tensorboard=False, mlflow=False, resumed=trainer.logged_until())
    try:
        trainer.run(log)
    finally:
        log.close()
    return trainer


def batch_of(trainer):
    item = trainer.train_set[0]
    return {key: [value] if isinstance(value, str) else value[None].clone() for key, value in item.items()}


def gradients(trainer, step=0):
    """Of one step, with the optimizer held."""
    found = {}
    trainer.take_step._take = lambda bad: found.update(
        {name: p.grad.clone() for name, p in trainer.agent.named_parameters()}
    )
    figures = trainer.take_step(batch_of(trainer), step).figures()
    return figures, found


@pytest.mark.proof
@pytest.mark.parametrize(("spectral", "keep"), [("latent", "little"), ("latent", "all"), ("decoded", "little")])
def test_a_compiled_step_is_the_eager_one(tmp_path, without_inductor, spectral, keep):
    """float64: 1e-9 on the loss and on every parameter's gradient; and where losses decode audio, the agent alone."""
    weights = {"overlap_weight": 1.0, "reconstruction_weight": 0.5}
    options = {"precision": "float64", "spectral": spectral, "keep": keep, **weights, **EXACT}
    torch.manual_seed(0)
    eager = make(tmp_path / "a", compile="off", **options)
    compiled = make(tmp_path / "b", compile="on", **options)
    torch.manual_seed(1)
    wanted, wanted_grads = gradients(eager)
    torch.manual_seed(1)
    got, grads = gradients(compiled)
    mode = "agent and losses" if spectral == "latent" else "agent"
    assert compiled.take_step.compute.mode == (mode if keep == "all" else f"{mode} (keeping little)")
    assert eager.take_step.compute.mode == "eager"
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert math.isclose(value, wanted[name], rel_tol=1e-9, abs_tol=1e-9), name
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted_grads[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.proof
def test_one_compilation_in_a_run_of_fifty_steps(tmp_path, without_inductor):
    """With an epoch whose last batch is filled up, evaluations, checkpoints and a refused step in between."""
    counters.clear()
    trainer = make(tmp_path, clips=3, compile="on", spectral="latent", max_steps=50, batch_size=2, save_every=7)
    run(trainer, tmp_path)
    assert trainer.progress.step == 50
    assert len(trainer.evaluations) > 10
    assert len(without_inductor) == 1, "one graph, compiled once"
    assert not counters["graph_break"]
    saved = checkpoint.load_checkpoint(tmp_path / "last.safetensors")
    assert saved.info["mode"] == "agent and losses (keeping little)"


@pytest.mark.proof
def test_the_compiled_weights_are_those_saved(tmp_path, without_inductor):
    trainer = run(make(tmp_path, compile="on", spectral="latent", max_steps=2), tmp_path)
    saved = checkpoint.load_checkpoint(tmp_path / "last.safetensors").model
    assert saved.keys() == trainer.agent.state_dict().keys()
    assert not any("_orig_mod" in name for name in saved)
    for name, value in trainer.agent.state_dict().items():
        assert torch.equal(saved[name], value), name


@pytest.mark.proof
def test_resumed_is_bit_equal_within_a_mode(tmp_path, without_inductor, capsys):
    """With dropout, from a checkpoint in the middle of an epoch."""
    options = {"compile": "on", "spectral": "latent", "clips": 4, "batch_size": 1}
    whole = run(make(tmp_path / "whole", max_steps=6, **options), tmp_path / "whole")
    run(make(tmp_path / "part", max_steps=3, **options), tmp_path / "part")
    torch._dynamo.reset()
    resumed = run(make(tmp_path / "part", max_steps=6, resume=True, **options), tmp_path / "part")
    assert "last bits may differ" not in capsys.readouterr().err
    for name, value in whole.agent.state_dict().items():
        assert torch.equal(resumed.agent.state_dict()[name], value), name


@pytest.mark.proof
def test_another_mode_is_told(tmp_path, without_inductor, capsys):
    run(make(tmp_path, max_steps=1, compile="off"), tmp_path)
    run(make(tmp_path, max_steps=2, compile="on", spectral="latent", keep="all", resume=True), tmp_path)
    assert "trained with eager computation and goes on with agent and losses:" in capsys.readouterr().err
    run(make(tmp_path, max_steps=3, compile="on", spectral="latent", resume=True), tmp_path)
    assert "with agent and losses computation and goes on with agent and losses (keeping little):" in (
        capsys.readouterr().err
    )


@pytest.mark.proof
def test_several_processes(tmp_path, without_inductor, capsys):
    """The agent within DistributedDataParallel, with joint statistics: one process stands for several."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        options = {"precision": "float64", "sync_batchnorm": True, **EXACT}
        wanted, wanted_grads = gradients(make(tmp_path / "a", compile="off", **options))
        compiled = make(tmp_path / "b", compile="on", **options)
        got, grads = gradients(compiled)
    finally:
        torch.distributed.destroy_process_group()
    assert compiled.take_step.compute.mode == "agent (keeping little)"
    assert "losses stay eager: gradients are averaged over processes" in capsys.readouterr().err
    assert math.isclose(got["loss"], wanted["loss"], rel_tol=1e-9)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted_grads[name], rtol=0, atol=1e-9, msg=name)


def failing(*args, **options):
    def call(*inputs):
        raise RuntimeError("no C++ compiler found\nand a long story")

    return call


def test_where_the_compiler_fails_auto_goes_on_eagerly(tmp_path, monkeypatch, capsys):
    """As if nothing had been tried: the same draws, statistics and gradients as with `--compile off`."""
    plain = make(tmp_path / "plain", compile="off", spectral="latent")
    expected, expected_grads = gradients(plain)
    monkeypatch.setattr(torch, "compile", failing)
    trainer = make(tmp_path / "auto", compile="on", spectral="latent")
    trainer.take_step.compute.must = False  # as auto does on CUDA
    got, grads = gradients(trainer)
    assert got == expected
    assert all(torch.equal(grads[name], grad) for name, grad in expected_grads.items())
    said = capsys.readouterr().err
    assert "RuntimeError: no C++ compiler found): going on eagerly" in said
    assert "long story" not in said
    assert trainer.take_step.compute.mode == "eager"
    assert trainer.take_step(batch_of(trainer), 1).figures()["loss"] < math.inf


def test_where_our_ways_fail_pytorchs_own_are_tried(tmp_path, monkeypatch, without_inductor, capsys):
    """What `--keep little` adds to the compiler may be what it fails at; the step then begins anew."""
    wanted, wanted_grads = gradients(make(tmp_path / "a", compile="off", precision="float64", **EXACT))
    compiled = torch.compile

    def particular(function, **settings):
        return failing() if "custom_partitioner_fn" in (settings["options"] or {}) else compiled(function, **settings)

    monkeypatch.setattr(torch, "compile", particular)
    trainer = make(tmp_path / "b", compile="on", precision="float64", **EXACT)
    got, grads = gradients(trainer)
    said = capsys.readouterr().err
    assert "(RuntimeError: no C++ compiler found): trying with --keep all" in said
    assert "compiled: agent and losses, with the backward pass" in said
    assert trainer.take_step.compute.mode == "agent and losses"
    assert math.isclose(got["loss"], wanted["loss"], rel_tol=1e-9)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted_grads[name], rtol=0, atol=1e-9, msg=name)


def test_where_the_compiler_fails_on_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", failing)
    trainer = make(tmp_path, compile="on", spectral="latent")
    with pytest.raises(CompileError, match=r"--compile on: compiling the agent and losses failed .*no C"):
        trainer.take_step(batch_of(trainer), 0)
    assert issubclass(CompileError, UsageError)


def test_what_is_kept_is_asked_of_the_compiler(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **settings: asked.append(settings["options"]))
    for keep in ("little", "all"):
        make(tmp_path, compile="on", spectral="latent", keep=keep)
    assert "custom_partitioner_fn" in asked[0]
    assert asked[1] is None


def test_auto_leaves_cpus_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", failing)
    trainer = make(tmp_path, compile=False)  # as YAML reads "off"
    trainer.take_step(batch_of(trainer), 0)
    trainer = make(tmp_path, compile="auto")
    trainer.take_step(batch_of(trainer), 0)
    assert trainer.take_step.compute.mode == "eager"


@pytest.mark.proof
def test_a_refused_step_under_the_compiler(tmp_path, without_inductor):
    trainer = make(tmp_path, compile="on", spectral="latent")
    trainer.take_step(batch_of(trainer), 0)
    before = {name: value.clone() for name, value in trainer.agent.state_dict().items()}
    poisoned = batch_of(trainer)
    poisoned["input"][0, 5, 7] = math.nan
    assert trainer.take_step(poisoned, 1).figures()["refused"]
    for name, value in trainer.agent.state_dict().items():
        assert torch.equal(before[name], value), name


@pytest.mark.proof
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor(tmp_path, capsys):
    """Inductor's own code: close to the eager step in float32, and said in one line."""
    torch._dynamo.reset()
    eager = make(tmp_path / "a", compile="off", spectral="latent", **EXACT)
    compiled = make(tmp_path / "b", compile="on", spectral="latent", **EXACT)
    wanted, wanted_grads = gradients(eager)
    got, grads = gradients(compiled)
    assert math.isclose(got["loss"], wanted["loss"], rel_tol=1e-5)
    scale = max(float(g.abs().max()) for g in wanted_grads.values())
    for name, grad in grads.items():
        assert float((grad - wanted_grads[name]).abs().max()) <= 1e-4 * scale, name
    said = capsys.readouterr().err
    assert "compiled: agent and losses (keeping little), with the backward pass, in " in said
    assert "kernels of TorchInductor's, 0 graph breaks)" in said
    assert re.search(r"on this CPU a compiled step takes [\d.]+ s, an eager one [\d.]+: compiling gains", said)


@pytest.mark.proof
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_bfloat16_compiled_is_no_further_from_float64(tmp_path):
    """The error of all gradients together, against the same step in float64: compiled code rounds less often."""

    def step_of(name, **options):
        torch.manual_seed(0)
        trainer = make(tmp_path / name, spectral="latent", **EXACT, **options)
        return gradients(trainer)[1]

    torch._dynamo.reset()
    exact = step_of("exact", compile="off", precision="float64")
    eager, compiled = (step_of(mode, compile=mode, precision="bf16") for mode in ("off", "on"))

    def error(grads):
        return math.sqrt(sum(float((grads[name].double() - exact[name]).square().sum()) for name in exact))

    assert error(eager) > 1e-5 * error({name: torch.zeros(()) for name in exact})  # it was bfloat16
    assert error(compiled) <= 1.05 * error(eager)
