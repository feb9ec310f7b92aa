"""Whether a layer is as it was built, so that its arithmetic may be done without calling it.

A layer is more than its weights: one that was replaced, wrapped, adapted (LoRA), hooked (pruning and the older weight
and spectral norm recompute `weight` in a hook), parametrized, sharded or compiled has to be called as a module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(layer: object, kind: type[nn.Module], **settings: object) -> bool:
    """An unhooked `kind` itself, whose attributes are `settings`, with the usual `forward` and ordinary tensors."""
    if type(layer) is not kind:  # parametrizations and FSDP2 put a subclass in its place
        return False
    assert isinstance(layer, nn.Module)  # narrows the type
    own = layer.__dict__
    if "forward" in own or own.get("_compiled_call_impl") is not None:
        return False
    if any(own[name] for name in HOOKS) or _hooked_everywhere():
        return False
    if any(type(value) not in (Tensor, nn.Parameter) for value in own["_parameters"].values() if value is not None):
        return False  # quantized or distributed: their operators are their own
    return all(getattr(layer, name) == wanted for name, wanted in settings.items())


def _hooked_everywhere() -> bool:
    """Whether hooks are registered for all modules (`torch.nn.modules.module.register_module_forward_hook` ...)."""
    return any(getattr(global_hooks, f"_global{name}") for name in HOOKS)


def working_dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Of the module's first floating weight; `otherwise` where there is none (all are quantized, say)."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), otherwise)
