"""Every layer is called as a module: what replaces, hooks, wraps, adapts, prunes or parametrizes one takes effect."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrizations import orthogonal

from adaptive_window import AdaptiveWindowCreativeAgent, TonalityReducer
from adaptive_window.model import encoder, tonality

SMALL = {"window_frames": 40, "component_dim": 4, "composer_heads": 2, "composer_layers": 2, "composer_dim": 16}
LAYERS = [
    "tonality_reducer_input.depthwise",
    "tonality_reducer_input.pointwise",
    "tonality_reducer_target.norm",
    "creative_agent.composer.composer.layers.0.self_attn.out_proj",
    "creative_agent.composer.composer.layers.1.linear1",
    "creative_agent.composer.composer.layers.0.linear2",
    "creative_agent.composer.composer.layers.0.norm1",
    "creative_agent.composer.composer.layers.1.dropout",
    "creative_agent.composer.output_projection.3",
    "creative_agent.component_selector.0",
    "creative_agent.input_extractor.rhythm_conv1",
    "creative_agent.target_extractor.timbre_norm",
    "window_selector.mlp.4",
    "window_selector.pool",
]


def small(dtype: torch.dtype = torch.float64, **changes: Any) -> AdaptiveWindowCreativeAgent:
    torch.manual_seed(0)
    agent = AdaptiveWindowCreativeAgent(16, 2, **(SMALL | changes)).to(dtype)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return agent


def clips(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, 2, 16, 60, generator=torch.Generator().manual_seed(1), dtype=dtype).unbind(0)
    return x, y


def loss_of(agent: nn.Module) -> Tensor:
    outputs, losses, _ = agent(*clips(next(p.dtype for p in agent.parameters() if p.is_floating_point())))
    return torch.stack(outputs).square().mean() + torch.stack(losses).mean()


def replace(agent: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    parent, _, leaf = name.rpartition(".")
    new = make(agent.get_submodule(name))
    setattr(agent.get_submodule(parent), leaf, new)
    return new


def grads(agent: nn.Module) -> dict[str, Tensor]:
    agent.zero_grad(set_to_none=True)
    loss_of(agent).backward()
    return {name: p.grad for name, p in agent.named_parameters() if p.grad is not None}


def test_every_hook_fires() -> None:
    """Of all modules that hold or do something, the attention's inner ones among them."""
    agent, seen, seen_back = small(), set(), set()
    for name, module in agent.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: seen.add(name))
        if any(True for _ in module.parameters(recurse=False)):
            module.register_full_backward_hook(lambda m, i, o, name=name: seen_back.add(name))
    loss_of(agent).backward()
    names = {name for name, module in agent.named_modules() if not isinstance(module, nn.ModuleList)}
    assert names - seen == set()
    assert {n for n in names if any(True for _ in agent.get_submodule(n).parameters(recurse=False))} == seen_back


def bent(x: Tensor) -> Tensor:
    """No normalization takes this out again."""
    return torch.where(x > 0, 2 * x, x)


class Bent(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Tensor) -> Tensor:
        return bent(self.inner(*args))


@pytest.mark.parametrize("name", LAYERS)
def test_what_changes_a_layers_output_changes_the_agents(name: str) -> None:
    """In each way that modules offer, and in all of them alike."""
    found, agent = {}, small(window_frames=24)
    x, y = (clip[:, :, :32] for clip in clips())

    def outputs() -> Tensor:
        with torch.no_grad():
            return torch.stack(agent.eval()(x, y)[0])

    before, layer = outputs(), agent.get_submodule(name)
    handle = layer.register_forward_hook(lambda module, inputs, output: bent(output))
    found["hook"] = outputs()
    handle.remove()
    handle = register_module_forward_hook(lambda module, i, output: bent(output) if module is layer else None)
    found["hook of all modules"] = outputs()
    handle.remove()
    own, kind = layer.forward, type(layer)
    layer.forward = lambda *args: bent(own(*args))
    found["forward"] = outputs()
    del layer.forward
    layer.__class__ = type("Bending", (kind,), {"forward": lambda self, *args: bent(kind.forward(self, *args))})
    found["subclass"] = outputs()
    layer.__class__ = kind
    torch.testing.assert_close(outputs(), before, rtol=0, atol=0)
    replace(agent, name, Bent)
    found["wrapper"] = outputs()
    assert (found["wrapper"] - before).abs().max() > 1e-6
    for way, got in found.items():
        torch.testing.assert_close(got, found["wrapper"], rtol=0, atol=1e-12, msg=way)


class Lora(nn.Module):
    """As peft's layers: `weight` and `bias` are the frozen base's."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        if isinstance(base, nn.Conv1d):
            self.a, self.b = nn.Conv1d(base.in_channels, 2, 1), nn.Conv1d(2, base.out_channels, 1)
        else:
            assert isinstance(base, nn.Linear)
            self.a, self.b = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.b(self.a(x))


@pytest.mark.parametrize("name", [n for n in LAYERS if "norm" not in n and "dropout" not in n and "pool" not in n])
def test_adapters_are_trained(name: str) -> None:
    agent = small()
    adapter = replace(agent, name, lambda base: Lora(base).double())
    optimizer = torch.optim.SGD([p for p in agent.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(agent).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (*adapter.a.parameters(), adapter.b.weight))


@pytest.mark.parametrize(
    ("way", "name"),
    [
        *((way, name) for way in ("prune", "weight_norm", "spectral_norm") for name in (LAYERS[1], LAYERS[4])),
        ("orthogonal", LAYERS[1]),
        ("spectral_norm", "window_selector.mlp.4"),
        ("attention", ""),
    ],
)
def test_computed_weights(way: str, name: str) -> None:
    """They are computed anew for every call: two steps work, and the parameters below them are trained."""
    agent = small()
    layer = agent.get_submodule(name)
    if way == "prune":
        prune.l1_unstructured(layer, "weight", 0.5)
        below = layer.weight_orig
    elif way == "weight_norm":
        with pytest.warns(FutureWarning, match="deprecated"):
            weight_norm(layer)
        below = layer.weight_g
    elif way == "spectral_norm":
        spectral_norm(layer)
        below = layer.weight_orig
    elif way == "orthogonal":
        orthogonal(layer)
        below = layer.parametrizations.weight.original
    else:
        layer = agent.get_submodule("creative_agent.composer.composer.layers.1.self_attn")
        prune.random_unstructured(layer, "in_proj_weight", 0.5)
        below = layer.in_proj_weight_orig
    optimizer = torch.optim.SGD(agent.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(agent).backward()
        optimizer.step()
        assert below.grad is not None
        assert below.grad.abs().max() > 0
    if way == "prune":
        assert (below.grad == 0).sum() >= below.numel() // 2  # what was pruned away is not trained


def test_pruned_everywhere() -> None:
    """With all weights of a reducer's mixing pruned away, its bias alone is left."""
    reducer, x = TonalityReducer(6).double(), torch.randn(2, 6, 20, dtype=torch.float64)
    nn.init.normal_(reducer.pointwise.bias)
    prune.l1_unstructured(reducer.pointwise, "weight", 1.0)
    expected = F.layer_norm(reducer.pointwise.bias, (6,))[:, None].expand_as(x)
    torch.testing.assert_close(reducer(x, torch.ones(2, dtype=torch.float64)), expected, rtol=0, atol=1e-12)


def test_parametrized() -> None:
    class Scaled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 3 * weight

    agent = small().eval()
    wanted = copy.deepcopy(agent)
    for reducer in (agent.tonality_reducer_input, agent.tonality_reducer_target):
        parametrize.register_parametrization(reducer.depthwise, "weight", Scaled())
    with torch.no_grad():
        wanted.tonality_reducer_input.depthwise.weight.mul_(3)
        wanted.tonality_reducer_target.depthwise.weight.mul_(3)
    torch.testing.assert_close(loss_of(agent), loss_of(wanted), rtol=0, atol=1e-12)


def test_checkpointed_layers_have_the_same_gradients() -> None:
    plain = small(dropout=0.0)
    expected = grads(plain)
    for name in ("creative_agent", "tonality_reducer_input.pointwise", "creative_agent.composer.composer.layers.0",
                 "window_selector", "creative_agent.input_extractor"):  # fmt: skip
        agent = small(dropout=0.0)
        replace(agent, name, checkpoint_wrapper)
        got = {key.replace("_checkpoint_wrapped_module.", ""): value for key, value in grads(agent).items()}
        assert got.keys() == expected.keys()
        for key, value in got.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-10)


def test_a_submodules_own_compiler_is_used() -> None:
    agent, wanted, calls = small(dropout=0.0), small(dropout=0.0), []
    names = ("window_selector", "tonality_reducer_input", "tonality_reducer_target.norm", "creative_agent")
    for name in names:

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor], name: str = name) -> Callable[..., Any]:
            calls.append(name)
            return graph.forward

        agent.get_submodule(name).compile(backend=backend)
    torch.testing.assert_close(loss_of(agent), loss_of(wanted), rtol=0, atol=1e-12)
    assert set(calls) == set(names)


def test_quantized_layers() -> None:
    """What `quantize_dynamic` puts in place of Linear has no floating weights at all."""
    agent = small(torch.float32).eval()
    wanted = torch.stack(agent(*clips(torch.float32))[0])
    quantized = torch.ao.quantization.quantize_dynamic(agent, {nn.Linear})
    assert any("quantized" in type(m).__module__ for m in quantized.window_selector.mlp)
    with torch.no_grad():
        got = torch.stack(quantized(*clips(torch.float32))[0])
    assert 0 < (got - wanted).abs().max() < 0.2 * wanted.abs().max()


@pytest.mark.parametrize(
    ("units", "restore"), [("parts", "none"), ("layers", "none"), ("layers", "frame"), ("whole", "none")]
)
def test_fsdp2_units(units: str, restore: str, tmp_path: Any) -> None:
    """One process of gloo: the gradients are those without it."""
    expected = grads(small(dropout=0.0, restore=restore))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        agent = small(dropout=0.0, restore=restore)
        parts = ["tonality_reducer_input", "tonality_reducer_target", "creative_agent", "window_selector"]
        inner = ["tonality_reducer_input.pointwise", "tonality_reducer_target.norm", "creative_agent.input_extractor",
                 "creative_agent.composer.composer.layers.0.self_attn", "creative_agent.composer.composer.layers.1",
                 "window_selector.mlp.0"]  # fmt: skip
        for name in {"parts": parts, "layers": inner, "whole": []}[units]:
            fully_shard(agent.get_submodule(name), mesh=mesh)
        fully_shard(agent, mesh=mesh)
        for name, grad in grads(agent).items():
            torch.testing.assert_close(grad.full_tensor(), expected[name], rtol=0, atol=1e-10)
        if units == "parts":
            assert agent.eval().get_component_statistics(*clips())["input_rhythm_energy"] > 0
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("given", ["windows", "pairs", "clips"])
@pytest.mark.parametrize("restore", ["none", "frame"])
def test_the_reducers_two_paths_are_equal(given: str, restore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused call and the layers one by one: outputs and all gradients."""
    reducer = TonalityReducer(6, 5, restore=restore).double()
    for parameter in reducer.parameters():
        nn.init.normal_(parameter)
    shape = {"windows": (3, 6, 16), "pairs": (3, 2, 6, 16), "clips": (3, 6, 40)}[given]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    strength = torch.rand((3,) if given == "windows" else (3, 2), dtype=torch.float64, requires_grad=True)
    start, ratio = ((torch.rand(3, 2, dtype=torch.float64) + k).requires_grad_() for k in (4, 1))
    places = (start, ratio, 16) if given == "clips" else ()
    inputs = [x, strength, *(places[:2]), *reducer.parameters()]
    fused = getattr(tonality, "windowed_tonality" if given == "clips" else "tonality_blend")
    found = []
    calls: list[int] = []
    monkeypatch.setattr(tonality, fused.__name__, lambda *a, **k: calls.append(1) or fused(*a, **k))
    for hooked in (False, True):
        calls.clear()
        handle = reducer.norm.register_forward_hook(lambda *ignored: None) if hooked else None
        out = reducer(x, strength, *places)
        assert len(calls) == (0 if hooked else 1)
        found.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
        if handle is not None:
            handle.remove()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert found[1][0].is_contiguous()


@pytest.mark.parametrize("hooked", [False, True])
def test_restored_it_changes_nothing_until_trained(hooked: bool) -> None:
    """At any strength, and loudness follows the frames; without, LayerNorm makes all frames equally loud."""
    x = torch.randn(2, 8, 30) * torch.linspace(0.1, 3, 30)
    for restore in ("none", "frame"):
        reducer = TonalityReducer(8, restore=restore)
        if hooked:
            reducer.norm.register_forward_hook(lambda *ignored: None)
        got = reducer(x, torch.ones(2))
        assert (float((got - x).detach().abs().max()) < 1e-5) == (restore == "frame")
        assert (float(got.detach().std(1).std()) < 1e-2) == (restore == "none")
    assert "restore='frame'" in repr(reducer)


def test_unknown_restore() -> None:
    with pytest.raises(ValueError, match="restore must be one of 'none', 'frame', got 'window'"):
        TonalityReducer(6, restore="window")
    with pytest.raises(TypeError, match="restore must be one of 'none', 'frame', got bool"):
        small(restore=True)


@pytest.mark.parametrize(
    "change", ["padding mode", "dilation", "no bias", "norm without weights", "more taps", "groups"]
)
def test_plain_layers_of_another_shape_are_called(change: str) -> None:
    """Replaced by layers of PyTorch's own whose arithmetic is another one."""
    reducer = TonalityReducer(6, 3).double()
    if change == "dilation":
        reducer.depthwise = nn.Conv1d(6, 6, 3, padding=2, dilation=2, groups=6)
    elif change == "groups":
        reducer.depthwise = nn.Conv1d(6, 6, 3, padding=1)
    elif change == "more taps":
        reducer.pointwise = nn.Conv1d(6, 6, 3, padding=1)
    elif change == "padding mode":
        reducer.pointwise = nn.Conv1d(6, 6, 1, padding_mode="circular")
    elif change == "no bias":
        reducer.pointwise = nn.Conv1d(6, 6, 1, bias=False)
    else:
        reducer.norm = nn.LayerNorm(6, elementwise_affine=False)
    reducer.double()
    x, strength = torch.randn(2, 6, 20, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    changed = reducer.norm(reducer.pointwise(reducer.depthwise(x)).transpose(1, 2)).transpose(1, 2)
    expected = x + strength[:, None, None] * (changed - x)
    torch.testing.assert_close(reducer(x, strength), expected, rtol=0, atol=1e-12)


def test_wrong_strength_is_named_on_both_paths() -> None:
    reducer = TonalityReducer(6)
    reducer.norm.register_forward_hook(lambda *ignored: None)
    with pytest.raises(ValueError, match=r"strength must have shape \[2, 3\]"):
        reducer(torch.zeros(2, 6, 40), torch.zeros(2, 2), torch.zeros(2, 3), torch.ones(2, 3), 20)
    with pytest.raises(TypeError, match="start, ratio and window go together"):
        reducer(torch.zeros(2, 6, 40), torch.zeros(2, 3), torch.zeros(2, 3))


def test_attention_of_another_kind() -> None:
    """A plain `nn.MultiheadAttention` in its place, and ours asked for what only PyTorch's can."""
    agent = small(dropout=0.0)
    expected = grads(agent)
    name = "creative_agent.composer.composer.layers.0.self_attn"

    def plain(ours: nn.Module) -> nn.Module:
        theirs = nn.MultiheadAttention(16, 2, batch_first=True, dtype=torch.float64)
        theirs.load_state_dict(ours.state_dict())
        return theirs

    replace(agent, name, plain)
    for key, value in grads(agent).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-10)
    ours, x = encoder.SelfAttention(16, 2, 0.0), torch.randn(1, 5, 16)
    out, weights = ours(x, x, x)
    assert weights.shape == (1, 5, 5)
    torch.testing.assert_close(ours(x, x, x, need_weights=False)[0], out)
