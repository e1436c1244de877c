"""More architectures for `zoo.py`, from small packages; each is left out where its package is missing."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["MORE"]

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
IMAGE = (torch.rand(3, 3, 32, 32),)
WORDS = (torch.randint(0, 50, (3, 16)),)
FEATURES = (torch.rand(3, 16, 32),)
LATENT = torch.rand(3, 4, 16, 16)
TIME = torch.tensor([1, 5, 9])


def _diffusers(name: str, settings: dict[str, Any], *args: Any, **kwargs: Any) -> Callable[[], Example]:
    def make() -> Example:
        import diffusers

        return getattr(diffusers, name)(**settings), args, kwargs

    return make


def _x_transformers(**settings: Any) -> Callable[[], Example]:
    def make() -> Example:
        import x_transformers as x

        layers = x.Decoder(dim=32, depth=4, heads=2, **settings)
        return x.TransformerWrapper(num_tokens=50, max_seq_len=16, attn_layers=layers), WORDS, {}

    return make


def _graph_net(name: str, *settings: Any, **more: Any) -> Callable[[], Example]:
    def make() -> Example:
        from torch_geometric.nn import models

        edges = torch.randint(0, 12, (2, 40))
        return getattr(models, name)(*settings, **more), (torch.rand(12, 8), edges), {}

    return make


def _from(package: str, name: str, args: tuple[Any, ...], **settings: Any) -> Callable[[], Example]:
    def make() -> Example:
        module = importlib.import_module(package)
        return getattr(module, name)(**settings), args, {}

    return make


UNET = {"sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"block_out_channels": (8, 16)}
TEXT = torch.rand(3, 5, 16)
_ALL: dict[str, dict[str, Callable[[], Example]]] = {
    "diffusers": {
        "UNet2D": _diffusers(
            "UNet2DModel",
            UNET
            | BLOCKS
            | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
            | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4},
            LATENT,
            TIME,
        ),
        "UNet2DCondition": _diffusers(
            "UNet2DConditionModel",
            UNET
            | BLOCKS
            | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
            | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16}
            | {"attention_head_dim": 4},
            LATENT,
            TIME,
            TEXT,
        ),
        "AutoencoderKL": _diffusers(
            "AutoencoderKL",
            BLOCKS
            | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
            | {"norm_num_groups": 4, "latent_channels": 4},
            IMAGE[0],
        ),
        "DiT": _diffusers(
            "DiTTransformer2DModel",
            {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 3, "sample_size": 16}
            | {"num_embeds_ada_norm": 10, "norm_num_groups": 4},
            LATENT,
            timestep=TIME,
            class_labels=torch.tensor([1, 2, 3]),
        ),
        "VQModel": _diffusers(
            "VQModel",
            BLOCKS
            | {"down_block_types": ("DownEncoderBlock2D",) * 2}
            | {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4},
            IMAGE[0],
        ),
    },
    "x_transformers": {
        "Decoder": _x_transformers(),
        "Decoder-rotary": _x_transformers(rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True),
        "Decoder-alibi": _x_transformers(alibi_pos_bias=True, attn_qk_norm=True),
    },
    "torch_geometric": {
        "GCN": _graph_net("GCN", 8, 16, 3, out_channels=4),
        "GAT": _graph_net("GAT", 8, 16, 3, out_channels=4),
        "GIN": _graph_net("GIN", 8, 16, 3, out_channels=4),
        "GraphSAGE": _graph_net("GraphSAGE", 8, 16, 3, out_channels=4),
        "GraphUNet": _graph_net("GraphUNet", 8, 16, 4, depth=2),
    },
    "efficientnet_pytorch": {
        "b0": lambda: (
            importlib.import_module("efficientnet_pytorch").EfficientNet.from_name("efficientnet-b0", num_classes=5),
            (torch.rand(3, 3, 64, 64),),
            {},
        ),
    },
    "conformer": {
        "Conformer": _from("conformer", "Conformer", FEATURES, dim=32, depth=3, dim_head=8, heads=2),
    },
    "linformer": {"Linformer": _from("linformer", "Linformer", FEATURES, dim=32, seq_len=16, depth=3, heads=2, k=4)},
    "performer_pytorch": {
        "PerformerLM": _from(
            "performer_pytorch",
            "PerformerLM",
            WORDS,
            num_tokens=50,
            max_seq_len=16,
            dim=32,
            depth=3,
            heads=2,
            dim_head=8,
        ),
    },
    "perceiver_pytorch": {
        "Perceiver": _from(
            "perceiver_pytorch",
            "Perceiver",
            (torch.rand(3, 8, 8, 3),),
            input_channels=3,
            input_axis=2,
            num_freq_bands=2,
            max_freq=4.0,
            depth=3,
            num_latents=6,
            latent_dim=16,
            cross_heads=1,
            latent_heads=2,
            cross_dim_head=8,
            latent_dim_head=8,
            num_classes=5,
        ),
    },
    "axial_attention": {
        "AxialImageTransformer": _from(
            "axial_attention",
            "AxialImageTransformer",
            (torch.rand(3, 8, 6, 6),),
            dim=8,
            depth=3,
            heads=2,
            reversible=False,
        ),
    },
    "pytorch_tcn": {
        "TCN": _from("pytorch_tcn", "TCN", (torch.rand(3, 4, 20),), num_inputs=4, num_channels=[8, 8, 8]),
    },
    "kan": {"KAN": _from("kan", "KAN", (torch.rand(3, 4),), width=[4, 5, 3, 2], grid=3, k=2, auto_save=False)},
}
MORE = {
    f"{package}/{name}": make
    for package, entries in _ALL.items()
    if importlib.util.find_spec(package)
    for name, make in entries.items()
}
