"""An H100 that is not there, for PyTorch's compiler: it makes the code for one, and nothing runs.

PyTorch lets tensors without memory (`FakeTensorMode`) say that they are on a GPU. What it then asks of CUDA (how many
devices there are, which one is the current, whether a stream is being captured) is answered here: `load` puts a library
of such answers before CUDA's own, which has to happen before PyTorch is imported; `pretend` answers what PyTorch's
Python asks, and Triton.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from .h100 import PROCESSORS

ARCH = 90
ANSWERS = """
int cudaGetDeviceCount(int* n) { *n = 1; return 0; }
int cudaGetDevice(int* d) { *d = 0; return 0; }
int cudaSetDevice(int d) { return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaDeviceGetStreamPriorityRange(int* least, int* most) { *least = 0; *most = -5; return 0; }
int cudaStreamGetCaptureInfo_v2(void* s, int* status, void* a, void* b, void* c, void* d) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo_v3(void* s, int* status, void* a, void* b, void* c, void* d, void* e)
    { *status = 0; return 0; }
int cudaStreamIsCapturing(void* s, int* status) { *status = 0; return 0; }
int cudaStreamQuery(void* s) { return 0; }
int cudaStreamWaitEvent(void* s, void* e, unsigned f) { return 0; }
int cudaStreamSynchronize(void* s) { return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaEventCreateWithFlags(void** e, unsigned f) { *e = (void*)1; return 0; }
int cudaEventRecord(void* e, void* s) { return 0; }
int cudaEventRecordWithFlags(void* e, void* s, unsigned f) { return 0; }
int cudaEventQuery(void* e) { return 0; }
int cudaEventSynchronize(void* e) { return 0; }
int cudaEventDestroy(void* e) { return 0; }
int cudaDriverGetVersion(int* v) { *v = 13000; return 0; }
int cudaDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; } /* compute capability, major */
"""
# of the driver, which PyTorch looks up by name and calls for the context alone
DRIVER = """
cuCtxGetCurrent cuCtxSetCurrent cuDeviceGet cuDeviceGetAttribute cuDevicePrimaryCtxRetain cuFuncGetAttribute
cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorString cuLaunchCooperativeKernel cuLaunchKernel cuLinkAddData_v2
cuLinkComplete cuLinkCreate_v2 cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleUnload
cuOccupancyMaxActiveBlocksPerMultiprocessor cuPointerGetAttribute cuTensorMapEncodeTiled
"""
ANSWERS += "int cuDevicePrimaryCtxGetState(int d, unsigned* f, int* active) { *f = 0; *active = 0; return 0; }\n"
ANSWERS += "".join(f"int {name}() {{ return 0; }}\n" for name in DRIVER.split())
PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=PROCESSORS,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5120,
    gcnArchName="",
    uuid="",
    is_integrated=False,
)


def load() -> None:
    """Takes the place of CUDA's runtime in this process.

    Raises:
        RuntimeError: PyTorch has been imported, and with it CUDA's own; or there is no C compiler (`cc`).
    """
    if "torch" in sys.modules:
        raise RuntimeError("absent_gpu.load: to be called before torch is imported")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "answers.c"), Path(folder, "answers.so")
        source.write_text(ANSWERS)
        # under the driver's name, so that whoever loads that has this
        command = ["cc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"absent_gpu.load: {' '.join(command)} failed: {error}") from error
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _answer(owner: Any, **answers: Any) -> None:
    for name, answer in answers.items():
        setattr(owner, name, answer)


def _driver() -> Any:
    """Triton's."""
    import torch

    from .compiled import _Driver

    driver = _Driver(ARCH)
    asked = {
        "max_shared_mem": PROPERTIES.shared_memory_per_block_optin,
        "max_num_regs": PROPERTIES.regs_per_multiprocessor,
        "multiprocessor_count": PROCESSORS,
        "warpSize": PROPERTIES.warp_size,
        "sm_clock_rate": PROPERTIES.clock_rate,
        "mem_clock_rate": PROPERTIES.memory_clock_rate,
        "mem_bus_width": PROPERTIES.memory_bus_width,
    }
    _answer(
        driver,
        utils=types.SimpleNamespace(get_device_properties=lambda device: asked),
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_device=lambda: 0,
    )
    return driver


def pretend() -> None:
    """For the rest of this process, one H100 is there for all that compiles and nothing that runs."""
    import torch
    import torch._dynamo.device_interface
    import torch._inductor.fx_passes.fuse_attention
    import torch._inductor.fx_passes.pad_mm
    import torch._subclasses.fake_tensor
    from triton.runtime.driver import driver

    def nothing(*args: Any, **kwargs: Any) -> None:
        """Seeds, waits, first contacts."""

    _answer(
        torch.cuda,
        is_available=lambda: True,
        is_initialized=lambda: True,
        is_bf16_supported=lambda including_emulation=True: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        current_stream=lambda device=None: types.SimpleNamespace(cuda_stream=0),
        get_device_properties=lambda device=None: PROPERTIES,
        get_device_capability=lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        get_device_name=lambda device=None: PROPERTIES.name,
        get_rng_state=lambda device=None: torch.zeros(16, dtype=torch.uint8),
        set_rng_state=nothing,
        manual_seed=nothing,
        manual_seed_all=nothing,
        synchronize=nothing,
        _lazy_init=nothing,
    )
    interface = torch._dynamo.device_interface.CudaInterface
    for owner in (interface, interface.Worker):
        _answer(
            owner,
            is_available=staticmethod(lambda: True),
            device_count=staticmethod(lambda: 1),
            current_device=staticmethod(lambda: 0),
            get_device_properties=staticmethod(lambda device=None: PROPERTIES),
        )
    _answer(interface, get_compute_capability=staticmethod(lambda device=None: ARCH))
    _answer(torch._subclasses.fake_tensor, init_gpu_context=nothing)
    # patterns that are traced on a device's tensors: none of them is in the step (attention is an operator there)
    _answer(torch._inductor.fx_passes.fuse_attention, _sfdp_init=nothing)
    _answer(torch._inductor.fx_passes.pad_mm, _pad_mm_init=nothing)
    _fold_on_cpu()
    driver.set_active(_driver())


def _fold_on_cpu() -> None:
    """Constants that the compiler folds are computed, which a device that is not there cannot."""
    import torch
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder

    folded = UniformValueConstantFolder._deduce_value

    def deduce(self: Any, node: Any) -> Any:
        given = node.kwargs
        if "device" in given:
            node.kwargs = {**given, "device": torch.device("cpu")}
        try:
            return folded(self, node)
        finally:
            node.kwargs = given

    _answer(UniformValueConstantFolder, _deduce_value=deduce)
