"""Real architectures with random weights, and inputs of any size for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.helpers.models import Dicts

Call = tuple[tuple[Any, ...], dict[str, Any]]

PICTURE = 32
FULL_PICTURE = 224


@dataclass(frozen=True)
class ZooModel:
    """One model, its inputs, and the expected properties of its graph."""

    name: str
    make: Callable[[], nn.Module]
    call: Callable[[int, int], Call]
    """Returns the arguments for a batch and a length."""
    varies: str
    """The sizes that stay free in its graph."""
    lengths: tuple[int, ...] = (9, 16)
    falls_back: bool = False
    """Whether the model accepts sizes that its graph does not."""
    full: bool = False
    """Whether it has the size of a real model, so that its tests are slow."""


class DenoisingUNet(nn.Module):
    """A U-Net with skip connections that depends on a time and optionally on a condition."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), steered: int = 32) -> None:
        super().__init__()
        self.register_buffer("rates", torch.logspace(0, -4, steered // 2), persistent=False)
        self.steer = nn.Sequential(nn.Linear(steered, steered), nn.SiLU())
        self.enter = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(Residual(a, b, steered) for a, b in pairs)
        self.middle = Residual(widths[-1], widths[-1], steered)
        self.up = nn.ModuleList(Residual(b + a, a, steered) for a, b in reversed(pairs))
        self.leave = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, batch: Any, condition: Any = None, *, scale: Any = None) -> Any:
        angle = batch["time"][:, None].float() * self.rates
        steer = self.steer(torch.cat([angle.sin(), angle.cos()], -1))
        if condition is not None:
            steer = steer + condition
        h = self.enter(batch["x"])
        skips = []
        for block in self.down:
            skips.append(h)
            h = nn.functional.avg_pool2d(block(h, steer), 2)
        h = self.middle(h, steer)
        for block in self.up:
            h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], 1), steer)
        y = self.leave(h)
        return {"sample": y if scale is None else y * scale, "aux": (h.mean((2, 3)), None)}


class Residual(nn.Module):
    def __init__(self, width: int, out: int, steered: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, n) for n in (width, out))
        self.convs = nn.ModuleList(nn.Conv2d(n, out, 3, padding=1) for n in (width, out))
        self.steer = nn.Linear(steered, out)
        self.skip = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: torch.Tensor, steer: torch.Tensor) -> torch.Tensor:
        h = self.convs[0](torch.relu(self.norms[0](x))) + self.steer(steer)[:, :, None, None]
        h = self.convs[1](torch.relu_(self.norms[1](h)))
        return torch.add(h, self.skip(x))


def mlp() -> nn.Module:
    hidden = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def resnet(**options: Any) -> nn.Module:
    model: nn.Module = hf.ResNetForImageClassification(hf.ResNetConfig(**options))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            # With zeros and ones, tests could not detect a lost buffer.
            norm.register_buffer("running_mean", torch.rand(norm.num_features))
            norm.register_buffer("running_var", torch.rand(norm.num_features) + 0.5)
    return model


def small_resnet() -> nn.Module:
    return resnet(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=10)


def small_vit() -> nn.Module:
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=PICTURE,
        patch_size=8,
    )
    return hf.ViTForImageClassification(config)


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        use_cache=False,
    )
    model: nn.Module = hf.LlamaForCausalLM(config)
    return model.to(dtype)


def mixtral() -> nn.Module:
    config = hf.MixtralConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=4,
        use_cache=False,
    )
    return hf.MixtralForCausalLM(config)


def t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=1000, d_model=64, d_kv=8, d_ff=128, num_layers=2, num_heads=8, use_cache=False
    )
    return hf.T5ForConditionalGeneration(config)


def small_bert(layers: int = 2) -> nn.Module:
    config = hf.BertConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return hf.BertForMaskedLM(config)


def small_distilbert() -> nn.Module:
    config = hf.DistilBertConfig(vocab_size=1000, dim=32, n_layers=4, n_heads=4, hidden_dim=64)
    return hf.DistilBertForMaskedLM(config)


def small_gpt2() -> nn.Module:
    config = hf.GPT2Config(vocab_size=1000, n_embd=32, n_layer=4, n_head=4, use_cache=False)
    return hf.GPT2LMHeadModel(config)


def mamba() -> nn.Module:
    config = hf.MambaConfig(
        vocab_size=1000, hidden_size=32, state_size=8, num_hidden_layers=2, use_cache=False
    )
    return hf.MambaForCausalLM(config)


def funnel() -> nn.Module:
    config = hf.FunnelConfig(
        vocab_size=1000, block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64
    )
    return hf.FunnelModel(config)


class ByRow(nn.Module):
    """Computes row by row, so that its trace has a fixed number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = torch.stack([layer(row) for row in x])
        return x


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, 1000, (batch, length))


def mask(batch: int, length: int, left: bool = False) -> torch.Tensor:
    """Return an attention mask: the first row has padding, the others have none."""
    real = torch.ones(batch, length, dtype=torch.long)
    real[0, length // 2 :] = 0
    return real.flip(1) if left else real


def picture(batch: int, _: int) -> Call:
    return (), {"pixel_values": torch.randn(batch, 3, PICTURE, PICTURE)}


def full_picture(batch: int, _: int) -> Call:
    return (), {"pixel_values": torch.randn(batch, 3, FULL_PICTURE, FULL_PICTURE)}


def text(batch: int, length: int) -> Call:
    return (), {"input_ids": ids(batch, length)}


def padded(batch: int, length: int) -> Call:
    return (), {"input_ids": ids(batch, length), "attention_mask": mask(batch, length)}


def padded_left(batch: int, length: int) -> Call:
    return (), {"input_ids": ids(batch, length), "attention_mask": mask(batch, length, left=True)}


def translation(batch: int, length: int) -> Call:
    return (), {**padded(batch, length)[1], "decoder_input_ids": ids(batch, length + 3)}


def noise(batch: int, _: int) -> Call:
    given = {"x": torch.randn(batch, 3, 32, 32), "time": torch.randint(0, 1000, (batch,))}
    return (given, None), {"scale": torch.tensor(0.5)}


def dicts(batch: int, _: int) -> Call:
    return ({"x": torch.randn(batch, 8), "offset": torch.randn(batch)},), {"scale": 2.0}


def rows(batch: int, _: int) -> Call:
    return (torch.randn(batch, 8),), {}


ZOO = (
    ZooModel("mlp", mlp, lambda b, s: ((torch.randn(b, 64),), {}), "all sizes", (0,)),
    ZooModel("resnet", small_resnet, picture, "batch", (0,)),
    ZooModel("resnet50", resnet, full_picture, "batch", (0,), full=True),
    ZooModel("vit", small_vit, picture, "batch", (0,)),
    ZooModel(
        "vit-b16",
        lambda: hf.ViTForImageClassification(hf.ViTConfig()),
        full_picture,
        "batch",
        (0,),
        full=True,
    ),
    ZooModel("bert", lambda: small_bert(4), padded, "batch and length"),
    ZooModel(
        "bert-base",
        lambda: hf.BertForMaskedLM(hf.BertConfig()),
        padded,
        "batch and length",
        full=True,
    ),
    ZooModel("distilbert", small_distilbert, padded, "batch and length"),
    ZooModel(
        "distilbert-base",
        lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig()),
        padded,
        "batch and length",
        full=True,
    ),
    ZooModel("gpt2", small_gpt2, text, "batch and length"),
    ZooModel(
        "gpt2-124m",
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(use_cache=False)),
        text,
        "batch and length",
        full=True,
    ),
    ZooModel("llama", llama, padded_left, "batch and length"),
    ZooModel("llama-bf16", lambda: llama(torch.bfloat16), padded_left, "batch and length"),
    ZooModel("mixtral", mixtral, text, "batch and length"),
    ZooModel("t5", t5, translation, "batch and length"),
    ZooModel("unet", DenoisingUNet, noise, "batch", (0,)),
    ZooModel("dicts", Dicts, dicts, "batch", (0,)),
    ZooModel("mamba", mamba, text, "batch", (5,), falls_back=True),
    ZooModel("funnel", funnel, padded, "batch", (9,), falls_back=True),
    ZooModel("by row", ByRow, rows, "nothing", (0,), falls_back=True),
)
