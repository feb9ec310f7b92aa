"""What a compiled step keeps and computes again: fewer bytes, the same bits, and nothing dear twice.

Graphs are cut as for CUDA (dropout is hashed) and run as they are, on the CPU.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.model import convolution, dropout, encoder
from adaptive_window.model.composer import MultiScaleExtractor
from adaptive_window.training import choices
from adaptive_window.training.partition import Lean, first_taken, lean_options, policy

# parts of the names of operators that are neither repeated nor drawn anew
DEAR = ("mm", "addmm", "bmm", "convolution", "attention", "windowed_tonality", "rand", "bernoulli", "draw_mask")


class Cut:
    """`torch.compile` of a loss by a partition; after the first call `forward` and `backward` are its graphs."""

    def __init__(self, loss: Callable[..., Tensor], partition: Callable[..., Any]) -> None:
        def cut(*args: Any, **kwargs: Any) -> Any:
            self.forward, self.backward = partition(*args, **kwargs)
            return self.forward, self.backward

        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=boxed_nop, bw_compiler=boxed_nop, partition_fn=cut, decompositions=select_decomp_table()
        )
        self.loss: Callable[..., Tensor] = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)

    def kept(self) -> dict[str, int]:
        """Bytes kept for the backward pass by name, of what the caller does not hold."""
        held = {node.name for node in self.forward.graph.find_nodes(op="placeholder")}
        nodes = [node for node in self.backward.graph.find_nodes(op="placeholder") if node.name not in held]
        values = {node.name: node.meta["val"] for node in nodes if "tangents" not in node.name}
        return {name: value.nbytes for name, value in values.items() if isinstance(value, Tensor)}

    def dear(self) -> list[Counter[str]]:
        """Dear operators of either graph, and how often."""
        called = [
            [str(n.target) for n in g.graph.nodes if n.op == "call_function"] for g in (self.forward, self.backward)
        ]
        return [Counter(name for name in names if any(part in name for part in DEAR)) for names in called]


PARTITIONS = {"all": min_cut_rematerialization_partition, "little": Lean()}


class Small(nn.Module):
    """Clips in, cast, three products, GELU and dropout between, and the first's result needed again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, 64, bias=False) for size in (16, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (layer.weight.bfloat16() for layer in self.layers)
        hidden = 0.5 * F.linear(x.bfloat16(), first)
        between = F.linear(dropout.hashed_dropout(F.gelu(hidden), 0.5), second)
        last = F.linear(dropout.hashed_dropout(F.gelu(between), 0.5), third)
        return (last.float() * hidden.float()).sum()


def test_what_is_kept_can_be_counted_by_hand() -> None:
    x = torch.randn(32, 16)
    found = {}
    for keep, partition in PARTITIONS.items():
        torch.manual_seed(0)
        net = Small()
        cut = Cut(net, partition)
        cut.loss(x).backward()
        found[keep] = (cut, [p.grad for p in net.parameters()])
    # the products' results as they came, two seeds for each of two masks, two weights in bfloat16; and what the last
    # product takes, which the backward pass is the first to need
    rows, little, most = 32, found["little"][0].kept(), found["all"][0].kept()
    assert sorted(little.values()) == sorted([2 * rows * 64] * 4 + [2 * 4] * 2 + [2 * 64 * 64] * 2), little
    # PyTorch's partition keeps what dropout left of the other GELU's output, a mask, and a result made wider
    assert sum(most.values()) >= sum(little.values()) + (2 + 1) * rows * 64, most
    assert found["all"][0].dear() == found["little"][0].dear()
    for one, other in zip(found["all"][1], found["little"][1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("widths", "kept"),
    [
        ([16, 64, 64, 24, 8], [64, 24, 8]),  # the last of the largest, and what comes after
        ([16, 64, 64, 24, 9], []),  # which is more than half as much again
        ([64, 16, 24], []),
        ([64, 16], [64, 16]),
        ([24], [24]),
    ],
)
def test_what_the_backward_pass_takes_first_is_kept_while_there_is_room(widths: list[int], kept: list[int]) -> None:
    """Operands `[4, width]` of one product after the other, the last result of which has 8 columns; none in float32."""
    for dtype, expected in ((torch.bfloat16, kept), (torch.float32, [])):
        found = first_taken(chain([*widths, 8], dtype))
        assert [node.meta["val"].shape[1] for node in found] == expected


def chain(sizes: list[int], dtype: torch.dtype) -> fx.Graph:
    """The joint graph of products one after the other, between which all is elementwise."""
    weights = [torch.randn(n, m, dtype=dtype, requires_grad=True) for n, m in pairwise(sizes)]

    def joint(x: Tensor, tangents: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        for weight in weights:
            x = x.exp().view(2, 2, -1).view(4, -1) @ weight
        return torch.autograd.grad(x.exp(), weights, tangents)

    ends = (torch.randn(4, size, dtype=dtype) for size in (sizes[0], sizes[-1]))
    graph = make_fx(joint, tracing_mode="fake")(*ends, *weights).graph
    graph.find_nodes(op="placeholder")[1].target = "tangents_1"  # as AOTAutograd calls it
    return graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_extractor_keeps_what_its_second_convolutions_take(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """And neither what LeakyReLU made it of, nor its signs beside it."""
    monkeypatch.setattr(convolution, "channels_together", lambda x: torch.compiler.is_compiling())
    net = MultiScaleExtractor(8, 4).to(dtype)

    def loss(x: Tensor) -> Tensor:
        return torch.stack(net(x)).float().sin().sum()

    cut = Cut(loss, Lean())
    cut.loss(torch.randn(2, 8, 64, dtype=dtype)).backward()
    kept = [node for node in cut.forward.graph.nodes if node.name in cut.kept()]
    wide = [node for node in kept if node.meta["val"].numel() == 2 * 8 * 64]  # half of it is as wide as the output
    assert len(wide) == 1 + 3  # x, its channels together, for the first convolutions
    assert all(node.meta["val"].dtype == dtype for node in wide)
    assert torch.ops.aten.convolution.default not in {node.target for node in wide}


def test_torchinductor_knows_every_option() -> None:
    """Where it does not, the option is left out, and what it was for is lost."""
    options = {"custom_partitioner_fn", "realize_opcount_threshold", "allow_buffer_reuse"} | choices.OPTIONS.keys()
    assert lean_options("cuda").keys() == lean_options("cpu").keys() == options
    assert not lean_options("cuda")["allow_buffer_reuse"]
    assert lean_options("cpu")["allow_buffer_reuse"]


def test_layernorms_normalized_input_is_kept_by_rule() -> None:
    """What came before it may be as near to the backward pass, and a view tips the balance; BatchNorm's is cheap."""
    norms: list[Callable[..., Tensor]] = [
        lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        lambda x, w, b: F.batch_norm(x.transpose(1, 2), None, None, w, b, training=True),
    ]
    kept = []
    for norm in norms:
        graph = make_fx(norm, select_decomp_table(), tracing_mode="fake")(torch.randn(6, 4, 8), *torch.ones(2, 8)).graph
        chosen = [node for node in graph.nodes if policy(node) == CheckpointPolicy.MUST_SAVE]
        kept.append([tuple(node.meta["val"].shape) for node in chosen])
    assert kept == [[(6, 4, 8)], []]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_an_encoder_as_for_cuda_is_the_eager_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    """By rows and with GELU of its own, some twenty roundings deep, relative to each gradient's largest element."""
    monkeypatch.setattr(encoder, "compiles_for_cuda", lambda x: torch.compiler.is_compiling())
    torch.manual_seed(0)
    net, x = encoder.Encoder(32, 2, 64, 2, 0.0).to(dtype), torch.randn(3, 20, 32, dtype=dtype)

    def loss(x: Tensor) -> Tensor:
        return net(x).sin().sum()

    cut = Cut(loss, Lean())
    found = []
    for call in (loss, cut.loss):
        found.append(torch.autograd.grad(call(x), list(net.parameters())))
    assert ("exp2" in str(cut.backward.graph)) == (dtype == torch.float32)
    largest = max(float(g.abs().max()) for g in found[0])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) < tolerance * largest


def test_biases_behind_dropout_get_what_modules_would_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same draws, in float64: the masks of a bias's gradient are those of what it was added to."""
    for module, name in ((dropout, "is_hashed"), (encoder, "compiles_for_cuda")):
        monkeypatch.setattr(module, name, lambda x: torch.compiler.is_compiling())
    torch.manual_seed(0)
    net, x = encoder.Encoder(32, 2, 64, 2, 0.3).double(), torch.randn(3, 20, 32, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return net(x).sin().sum()

    found, sums = [], []
    for draw_for in (encoder.draw_for, lambda layer, x: None):
        monkeypatch.setattr(encoder, "draw_for", draw_for)
        cut = Cut(loss, Lean())
        torch.manual_seed(1)
        found.append(torch.autograd.grad(cut.loss(x), list(net.parameters())))
        sums.append(str(cut.backward.graph).count("as_strided.default"))
    assert sums[0] == sums[1] + 3  # of both second products, and of the second layer's attention
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.proof
def test_of_an_agent_same_bits_fewer_bytes_and_nothing_dear_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((dropout, "is_hashed"), (encoder, "compiles_for_cuda")):
        monkeypatch.setattr(module, name, lambda x: torch.compiler.is_compiling())
    sizes = {"num_pairs": 2, "window_frames": 48, "component_dim": 4, "composer_dim": 64, "composer_layers": 2}
    x, y = torch.randn(2, 2, 16, 64, dtype=torch.float64)
    found = {}
    for keep, partition in PARTITIONS.items():
        torch.manual_seed(0)
        agent = AdaptiveWindowCreativeAgent(16, composer_heads=2, dropout=0.3, **sizes).double()

        def loss(x: Tensor, y: Tensor, agent: nn.Module = agent) -> Tensor:
            outputs, losses, _ = agent(x, y)
            return torch.stack(losses).mean() + sum(o.square().mean() for o in outputs)

        cut = Cut(loss, partition)
        value = cut.loss(x, y)
        value.backward()
        found[keep] = (cut, [value.detach(), *(p.grad for p in agent.parameters())])
    for one, other in zip(found["all"][1], found["little"][1], strict=True):
        assert torch.equal(one, other)
    assert found["all"][0].dear() == found["little"][0].dear()
    assert found["all"][0].dear()[0].total() > 30
    most, least = (sum(found[keep][0].kept().values()) for keep in PARTITIONS)
    # in float64, where masks and casts weigh little; of two layers one has its widest operand kept
    assert least < 0.8 * most
