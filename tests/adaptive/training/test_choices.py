"""What TorchInductor is told of kernels: the layout of LayerNorm's backward pass, and which small ones become one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sympy
import torch
import torch._inductor.config
from torch import Tensor
from torch._inductor.choices import InductorChoices
from torch._inductor.dependencies import MemoryDep
from torch._inductor.scheduler import SchedulerNode
from torch._inductor.virtualized import V

from adaptive_window.training import choices
from adaptive_window.training.partition import lean_options

OURS = {"triton.mix_order_reduction_split_size": choices.SPLIT}


def config_of(width: int, mixed: bool = True) -> dict[str, int] | None:
    """Blocks and warps for rows of so many columns; None where they are TorchInductor's."""
    features = SimpleNamespace(reduction_numel=sympy.Integer(width))
    found = choices.Choices().triton_kernel_kwargs(None, features, [], {"mix_order_reduction": mixed})
    return found["fixed_config"].config if "fixed_config" in found else None


def test_warps_share_columns_of_the_rows_that_torchinductor_would_divide() -> None:
    with torch._inductor.config.patch(OURS):
        for width, warps in ((256, 1), (384, 2), (512, 2)):
            config = config_of(width)
            assert config is not None
            assert config["num_warps"] == warps
            assert config["RSPLIT_SIZE"] % config["XBLOCK"] == 0  # what its grid asserts
        assert config_of(512, mixed=False) is None
        assert config_of(128) is None
        assert config_of(1024) is None
    assert config_of(512) is None  # compiled without our options


def node_of(reduces: bool, numel: int, index: sympy.Expr | None = None) -> Any:
    """As the scheduler has it: a sum over the last of three loops that reads at the index, or what is elementwise."""
    made = SimpleNamespace(node=SimpleNamespace(get_numel=lambda: sympy.Integer(numel)))
    reads = [] if index is None else [MemoryDep("buf", index, LOOPS, (2400, 512, choices.ROWS_OF_BLOCK))]
    node = mock.Mock(spec=SchedulerNode, read_writes=SimpleNamespace(reads=reads))
    node.is_reduction.return_value, node.get_outputs.return_value = reduces, [made]
    return node


LOOPS = sympy.symbols("c0 c1 c2", integer=True)


def test_blocks_of_sums_over_what_the_kernel_writes() -> None:
    rows, (block, column, row) = choices.ROWS_OF_BLOCK, LOOPS
    outer = 2400 * 512
    written = node_of(False, outer * rows)
    over_rows = node_of(True, outer, 512 * rows * block + column + 512 * row)
    over_columns = node_of(True, outer, rows * (512 * block + column) + row)

    def config(nodes: list[Any], wide: int = rows) -> dict[str, int] | None:
        features = SimpleNamespace(
            reduction_numel=sympy.Integer(wide), numel=sympy.Integer(outer * rows // wide), node_schedule=nodes
        )
        found = choices.Choices().triton_kernel_kwargs(None, features, [], {})
        return found["fixed_config"].config if "fixed_config" in found else None

    with torch._inductor.config.patch(OURS):
        assert config([written, over_rows]) == config([written, over_rows], 2 * rows) == choices.BLOCK
        assert config([over_rows]) is None  # writes nothing else
        assert config([written, over_columns]) is None  # over what lies side by side
        assert config([written]) is None
        assert config([written, over_rows], 128) is None
    assert config([written, over_rows]) is None  # compiled without our options


def test_somebody_elses_choices_stay() -> None:
    class Foreign(InductorChoices):
        pass

    assert choices.choose()
    assert choices.choose()
    assert lean_options().keys() > choices.OPTIONS.keys()
    with V.set_choices_handler(Foreign()):
        assert not choices.choose()
        assert type(V.choices) is Foreign
        options = lean_options()
        assert options["triton.mix_order_reduction"] is False
        assert "combo_kernels" not in options
    assert choices.choose()


class _Seen(Exception):
    pass


def test_casts_come_together_and_nothing_that_needs_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a graph with casts at both ends, a chain between, a sum and a large cast; nothing is built."""
    monkeypatch.setattr(choices, "_torchs", lambda scheduler: scheduler._topological_sort_nodes())  # CPU nodes as well
    seen: dict[str, Any] = {}

    def look(nodes: list[Any]) -> list[Any]:
        scheduler = nodes[0].scheduler
        seen["with"], seen["all"] = choices.grouped(scheduler), nodes
        with torch._inductor.config.patch({"triton.mix_order_reduction_split_size": None}):
            seen["without"] = choices.grouped(scheduler)
        raise _Seen

    def f(weights: list[Tensor], large: Tensor, x: Tensor, y: Tensor) -> Any:
        casts = [w.bfloat16() for w in weights]
        ends = []
        for cast in casts:
            x, y = x @ cast, y @ cast
            ends += [x.float(), y.float()]  # as deep as each other, and deeper than those before
        return casts, ends, large.bfloat16(), x.float().sum(0)

    weights, (x, y) = [torch.randn(64, 64) for _ in range(3)], torch.randn(2, 8, 64).bfloat16()
    options = {**OURS, "_post_fusion_custom_pass": look, "fx_graph_cache": False}
    with pytest.raises(Exception, match="_Seen"):
        torch.compile(f, options=options)(weights, torch.randn(choices.SMALL + 1), x, y)
    groups = [group for group in seen["with"] if group]
    taken = [node for group in groups for node in group]
    assert len(taken) == len(set(taken))
    assert sorted(map(len, groups)) == [3, 6]  # casts of weights, and those that nothing needs
    first, last = sorted(groups, key=len)
    assert len({node.min_order for node in last}) == 1  # where the last of them was: behind all products
    assert last[0].min_order == max(node.max_order for node in last)
    assert len({node.min_order for node in first}) == 3
    for group in groups:
        for node in group:
            assert not any(node.ancestors & other.get_operation_names() for other in group if other is not node)
    assert sum(map(len, seen["without"])) == len(seen["all"]) > len(taken)
