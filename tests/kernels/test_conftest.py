"""The suite's own ground rules, which every other test relies on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_unwritten_memory_is_nan(dtype: torch.dtype) -> None:
    like = torch.ones(3, dtype=dtype)
    made = (torch.empty(3, dtype=dtype), torch.empty_like(like), like.new_empty(3), torch.empty_strided((3,), (2,)))
    assert all(value.isnan().all() for value in made)


def test_interpreter_or_device_is_chosen() -> None:
    assert os.environ["TRITON_INTERPRET"] in ("0", "1")


def test_music_is_audio(music: list[Path]) -> None:
    assert all(path.stat().st_size > 10_000 for path in music)


@pytest.mark.gpu
def test_gpu_tests_get_a_gpu(device: torch.device) -> None:
    assert device.type == "cuda"
    assert torch.ones(2, device=device).sum().item() == 2
