"""A checkpoint in the format of LSeg's own, `demo_e200.ckpt`, of random numbers and a thousandth of its size."""

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cuao3d.teachers.lseg import LSeg

LONG_SIDE = 64
"""Pixels; such a network knows positions for a square of 4 x 4 patches."""


def image_side() -> dict[str, Tensor]:
    """24 blocks with 16 heads, read after every sixth, as in the real one."""
    network = LSeg(
        width=32,
        num_heads=16,
        depth=24,
        num_positions=17,
        hooks=(5, 11, 17, 23),
        branches=(8, 8, 8, 8),
        fused=8,
        num_channels=512,
    )
    tensors = network.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.rand_like(tensor) + 0.5 if "running_var" in name else 0.3 * torch.randn_like(tensor)
    return tensors


def text_side(*, width: int = 128, depth: int = 2, num_tokens: int = 49408) -> dict[str, Tensor]:
    """CLIP's words by OpenAI's names, in half precision, with two heads."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (num_tokens, width),
        "positional_embedding": (77, width),
        "text_projection": (width, 512),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "logit_scale": (),
        "visual.conv1.weight": (8, 3, 4, 4),
    }
    for index in range(depth):
        block = f"transformer.resblocks.{index}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
        } | {f"{block}.ln_{layer}.{kind}": (width,) for layer in (1, 2) for kind in ("weight", "bias")}
    return {f"clip_pretrained.{name}": 0.2 * torch.randn(shape).half() for name, shape in shapes.items()}


def save_published(path: Path, tensors: dict[str, Tensor]) -> None:
    """Save tensors as the trainer of that time did: among counters, settings, and classes of its own."""
    trainer = "pytorch_lightning.callbacks.model_checkpoint"
    packages = ("pytorch_lightning", "pytorch_lightning.callbacks", trainer)
    sys.modules |= {name: ModuleType(name) for name in packages}
    module = sys.modules[trainer]
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": trainer})
    try:
        content = {
            "epoch": 200,
            "global_step": 1,
            "pytorch-lightning_version": "1.3.5",
            "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": ""}},
            "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
            "state_dict": {f"net.{name}": tensor for name, tensor in tensors.items()},
            "hyper_parameters": {"backbone": "clip_vitl16_384", "score": np.float64(0.5), "args": Namespace(aux=False)},
        }
        torch.save(content, path)
    finally:
        for name in packages:
            del sys.modules[name]
