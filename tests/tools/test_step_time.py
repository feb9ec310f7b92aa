"""The prediction of a compiled step: generated code is read right, the model is close to what was measured, and
TorchInductor's code for a GPU can be made where there is none.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: the checkout's `kernels` must hide no other

from tools import absent_gpu, step_time  # noqa: E402 - behind the path
from tools.generated import Meter, kernels, peak_bytes  # noqa: E402
from tools.step_time import Fit, Measured, Work, milliseconds, report  # noqa: E402

ELEMENTWISE = """
@triton_heuristics.pointwise(triton_meta={'signature': {'in_ptr0': '*bf16', 'in_ptr1': '*fp32', 'out_ptr0': '*fp32', 'xnumel': 'i32', 'XBLOCK': 'constexpr'}})
@triton.jit
def triton_poi_fused_add_0(in_ptr0, in_ptr1, out_ptr0, xnumel, XBLOCK : tl.constexpr):
    xnumel = 2048
    xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:]
    tmp0 = tl.load(in_ptr0 + (xindex), None).to(tl.float32)
    tmp1 = tl.load(in_ptr1 + (0))
    tl.store(out_ptr0 + (xindex), tmp0 + tl.broadcast_to(tmp1, [XBLOCK]), None)


def get_args():
    arg_0 = rand_strided((2, 1024), (1024, 1), device='cuda:0', dtype=torch.bfloat16)
    arg_1 = rand_strided((1,), (1,), device='cuda:0', dtype=torch.float32)
    arg_2 = rand_strided((2, 1024), (1024, 1), device='cuda:0', dtype=torch.float32)
    return arg_0, arg_1, arg_2,
"""  # noqa: E501 - as TorchInductor writes it
CASTS = """
@triton_heuristics.foreach(inductor_meta={'grid_type': 'SequentialComboKernelGrid', 'combo_grid_meta': {'xnumel_0': 100, 'xnumel_1': 20, 'ynumel_1': 3}})
@triton.jit
def triton_for_fused_1(in_ptr0, in_ptr1, out_ptr0, out_ptr1):
    pass
"""  # noqa: E501
FORWARD = f"""
triton_poi_fused_add_0 = async_compile.triton('triton_poi_fused_add_0', '''{ELEMENTWISE}''', device_str='cuda')
triton_for_fused_1 = async_compile.triton('triton_for_fused_1', '''{CASTS}''', device_str='cuda')


async_compile.wait(globals())
del async_compile

def call(args):
    primals_1, primals_2 = args
    args.clear()
    assert_size_stride(primals_1, (2, 1024), (1024, 1))
    with torch.cuda._DeviceGuard(0):
        stream0 = get_raw_stream(0)
        buf0 = empty_strided_cuda((2, 1024), (1024, 1), torch.float32)
        triton_poi_fused_add_0.run(primals_1, primals_2, buf0, 2048, stream=stream0)
        buf1 = empty_strided_cuda((2, 512), (512, 1), torch.float32)
        extern_kernels.mm(reinterpret_tensor(buf0, (2, 1024), (1024, 1), 0), primals_2, out=buf1)
        triton_poi_fused_add_0.run(primals_1, primals_2, buf0, 2048, stream=stream0)
        del buf0
        buf2 = empty_strided_cuda((2, 128), (128, 1), torch.float32)
        triton_for_fused_1.run(buf1, buf2, stream=stream0)
    return (buf2, buf1, )


def get_args():
    from torch._dynamo.testing import rand_strided
    primals_1 = rand_strided((2, 1024), (1024, 1), device='cuda:0', dtype=torch.bfloat16)
    primals_2 = rand_strided((1024, 512), (512, 1), device='cuda:0', dtype=torch.float32)
    return [primals_1, primals_2]


def benchmark_compiled_module(args, times=10, repeat=10):
    pass
"""
BACKWARD = """
async_compile.wait(globals())
del async_compile

def call(args):
    primals_2, permute_1, permute_2, permute_3, tangents_1 = args
    args.clear()
    with torch.cuda._DeviceGuard(0):
        buf0 = empty_strided_cuda((4, 1024), (1024, 1), torch.float32)
    return (buf0, )


def get_args():
    from torch._dynamo.testing import rand_strided
    primals_2 = rand_strided((1024, 512), (512, 1), device='cuda:0', dtype=torch.float32)
    permute_1 = rand_strided((16, 8, 64), (1536, 64, 1), device='cuda:0', dtype=torch.bfloat16)
    permute_2 = rand_strided((16, 8, 64), (1536, 64, 1), device='cuda:0', dtype=torch.bfloat16)
    permute_3 = rand_strided((16, 8, 64), (1536, 64, 1), device='cuda:0', dtype=torch.bfloat16)
    tangents_1 = rand_strided((), (), device='cuda:0', dtype=torch.float32)
    return [primals_2, permute_1, permute_2, permute_3, tangents_1]
"""


def in_a_process(script: str, cache: Path) -> Any:
    """What a script prints last, as JSON; outside Triton's interpreter, where nothing compiles."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"}
    script = f"import sys, warnings\nsys.path.append({str(ROOT)!r})\nwarnings.simplefilter('ignore')\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


class TestGeneratedCode:
    def test_kernels_with_their_launches_bytes_and_kinds(self) -> None:
        added, cast = kernels(FORWARD)
        assert (added.name, added.launches, added.kind, added.elements) == (
            "triton_poi_fused_add_0", 2, "elementwise", 2048,
        )  # fmt: skip
        assert added.bytes == 2048 * 2 + 4 + 2048 * 4
        assert (cast.launches, cast.bytes) == (1, 6 * (100 + 20 * 3))
        slices = added.source.replace("rand_strided((2, 1024), (1024, 1)", "rand_strided((2, 4096), (4096, 1)")
        assert added._replace(source=slices).bytes == added.bytes  # of each row of 4096, a slice

    def test_kinds_by_name_and_grid(self) -> None:
        (kernel, _) = kernels(FORWARD)
        assert kernel._replace(name="triton_red_fused_0").kind == "sums over columns"
        assert kernel._replace(name="triton_per_fused_0").kind == "sums over rows"
        assert kernel._replace(source=kernel.source + "fixed_config(").kind == "sums over blocks"
        mixed = kernel._replace(source=kernel.source + "MixOrderReductionGrid")
        assert mixed.kind == "both sums, rows divided"
        assert mixed._replace(source=mixed.source + "fixed_config(").kind == "both sums"

    def test_memory_of_views_is_counted_once_and_until_the_last_is_gone(self) -> None:
        meter = Meter()
        base = meter.see(torch.empty(1024, device="meta"))
        view = meter.see(base[:10])
        assert meter.live == 4096
        del base
        gc.collect()
        assert meter.live == 4096
        del view
        gc.collect()
        assert (meter.live, meter.peak) == (0, 4096)

    def test_the_peak_is_over_both_passes_with_what_the_caller_holds(self) -> None:
        weight, clip = 1024 * 512 * 4, 4096
        forward = weight + clip + 8192 + 64 * 512 * 4  # without the last tensor, for which buf0 has been freed
        packed, gradient = 3 * 16 * 8 * 64 * 2, 4 * 1024 * 4
        # q, k, v are one tensor; the clip is the caller's, though backward does not ask for it
        backward = weight + clip + packed + 512 + gradient
        assert peak_bytes(FORWARD, BACKWARD) == backward
        assert peak_bytes(FORWARD.replace("(2, 512)", "(64, 512)"), BACKWARD) == forward

    def test_instructions_are_of_one_element(self, tmp_path: Path) -> None:
        added, _ = kernels(FORWARD)
        more = added._replace(source=added.source.replace("tmp0 +", "tl.exp(tl.exp(tmp0) + 1.0) +"))
        script = f"""
import json
from tools.generated import Kernel
print(json.dumps([Kernel("k", 1, source).instructions(90) for source in {[added.source, more.source]!r}]))
"""
        few, many = in_a_process(script, tmp_path)
        assert 1 < few < 12
        assert few + 6 < many < few + 40


class TestModel:
    def test_bytes_decide_or_instructions(self) -> None:
        work = Work("k", 3, "elementwise", 297_000_000, 0)
        assert work.microseconds == pytest.approx(100.0)
        assert milliseconds([work, work]) == pytest.approx(0.6)
        busy = work._replace(instructions=250 * 132 * 4 * 32 * 1755)
        assert busy.microseconds == pytest.approx(250.0)

    def test_small_kernels_are_not_free(self) -> None:
        assert Work("k", 1, "elementwise", 100, 0).microseconds == pytest.approx(2.5)

    @pytest.mark.parametrize(("precision", "batch"), [("bf16", 16), ("bf16", 32), ("tf32", 32)])
    def test_close_to_what_an_h100_took(self, precision: str, batch: int) -> None:
        fits = Measured.read(precision, batch).fits
        assert len(fits) >= 5
        off = [fit.predicted_us / fit.measured_us - 1 for fit in fits]
        assert max(map(abs, off)) < 0.3
        assert abs(sum(f.predicted_us for f in fits) / sum(f.measured_us for f in fits) - 1) < 0.1

    def test_what_is_left_to_add_up_counts(self) -> None:
        line = "buf{} = workspace_0[{} * 960 * 512 : ({} + 1) * 960 * 512].view(960, 512).sum(dim=0)\n"
        (sums,) = step_time.added(FORWARD + line.format(1, 0, 0) + line.format(2, 1, 1))
        assert sums[1:] == (2, "sums over columns", 4 * 960 * 512, 0)
        was = Measured.read("bf16", 32).works
        assert sum(work.launches for work in was if work.name.endswith(".sum(0)")) == 16

    def test_what_was_not_measured_is_refused(self) -> None:
        for precision, batch in (("bf16", 17), ("tf32", 16)):  # the latter without its code
            wanted = f"{precision} {batch}; measured were bf16 16; bf16 32; tf32 32"
            with pytest.raises(ValueError, match=wanted):
                Measured.read(precision, batch)

    def test_the_step_is_what_was_measured_with_other_kernels(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = Work("triton_poi_a_0", 10, "elementwise", 297_000_000, 0)
        after = before._replace(launches=6)
        fit = Fit(before.name, 10, 1100.0, 1000.0)
        found = report([after], 3.0, Measured(20.0, 18.0, 4.0, 6.0, [before], [fit]))
        assert found["busy_ms"] == pytest.approx(18.0 - 0.4)
        idle = 2.0 - step_time.DROPPED_MS - 4 * step_time.IDLE_US / 1e3
        assert found["ms"] == pytest.approx(17.6 + idle)
        assert found["peak_of_original"] == pytest.approx(0.5)
        assert "predicted 19.4, 17.6" in capsys.readouterr().out


@pytest.mark.proof
def test_code_is_made_without_a_gpu(tmp_path: Path) -> None:
    """With one layer instead of four: the whole agent takes a minute."""
    script = """
from tools import absent_gpu
absent_gpu.load()
absent_gpu.pretend()
import json
from adaptive_window import AdaptiveWindowCreativeAgent
from tools.compiled_step import generate
from tools.generated import peak_bytes
from tools.step_time import works
from adaptive_window.training import partition
steps = []
for _ in range(2):
    steps.append(generate("bf16", 32, "little", AdaptiveWindowCreativeAgent(composer_layers=1)))
    partition.first_taken = lambda graph: []
step, least = steps
print(json.dumps({"codes": step, "works": works(step), "peak": peak_bytes(*step), "least": peak_bytes(*least)}))
"""
    found = in_a_process(script, tmp_path)
    forward, backward = found["codes"]
    for code, operators in (
        (forward, ("adaptive_window.windowed_tonality.default(", "_scaled_dot_product_cudnn_attention.default(")),
        (backward, ("adaptive_window.windowed_tonality_backward.", "_scaled_dot_product_cudnn_attention_backward.")),
    ):
        assert all(operator in code for operator in operators)
    made = [Work(*work) for work in found["works"]]
    rows = 32 * 3 * 800  # of all windows
    widened = [work for work in made if work.kind == "both sums"]  # LayerNorm's, laid out as `training.choices` asks
    assert widened
    assert all(work.bytes > rows * 512 * 4 for work in widened)
    # of two norms' weights and biases; the first one's kernel also sums for the bias of the second product behind it
    assert sum(work.launches for work in made if work.name.endswith("x 512.sum(0)")) == 2 * 2 + 1
    assert 1 < milliseconds(made) < 7  # a quarter of the layers, all of the rest
    # at least what attention keeps: q, k, v and its output in bfloat16
    assert 4 * rows * 512 * 2 < found["peak"] < 3 * 2**30
    assert found["peak"] <= found["least"], "what the backward pass takes first is kept at no cost"


def test_too_late_to_take_the_place_of_cuda() -> None:
    with pytest.raises(RuntimeError, match="before torch is imported"):
        absent_gpu.load()
