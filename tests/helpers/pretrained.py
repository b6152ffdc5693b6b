"""Small models whose checkpoints transformers renames, splits or fuses while it loads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

hf: Any = transformers

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**LAYERS, "hidden_size": 32, "intermediate_size": 64}
DECODER = {**ENCODER, "num_key_value_heads": 2, "vocab_size": 60}


def tokens() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(2, 60, (2, 7)), "attention_mask": torch.ones(2, 7).long()}


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


class Case(NamedTuple):
    model: Any
    config: Callable[[], Any]
    task: str = "raw"
    inputs: Callable[[], dict[str, torch.Tensor]] = tokens


CASES = {
    "bert, tied": Case(
        hf.BertForMaskedLM, lambda: hf.BertConfig(**ENCODER, vocab_size=60), "fill-mask"
    ),
    "distilbert": Case(
        hf.DistilBertForSequenceClassification,
        lambda: hf.DistilBertConfig(dim=32, hidden_dim=64, n_heads=4, n_layers=2, vocab_size=60),
        "text-classification",
    ),
    "bert, tokens": Case(
        hf.BertForTokenClassification,
        lambda: hf.BertConfig(**ENCODER, vocab_size=60),
        "token-classification",
    ),
    "gpt2, tied": Case(
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60),
    ),
    "llama": Case(hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**DECODER)),
    "llama, tied": Case(
        hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**DECODER, tie_word_embeddings=True)
    ),
    "mixtral, fused experts": Case(
        hf.MixtralForCausalLM, lambda: hf.MixtralConfig(**DECODER, num_local_experts=11)
    ),
    "t5": Case(
        hf.T5ForConditionalGeneration,
        lambda: hf.T5Config(d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2, vocab_size=60),
        inputs=lambda: {**tokens(), "decoder_input_ids": torch.randint(2, 60, (2, 5))},
    ),
    "vit, renamed": Case(
        hf.ViTForImageClassification,
        lambda: hf.ViTConfig(**ENCODER, image_size=32, num_labels=5),
        "image-classification",
        pixels,
    ),
    "resnet, statistics": Case(
        hf.ResNetForImageClassification,
        lambda: hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5
        ),
        "image-classification",
        pixels,
    ),
}


def saved(folder: Path, case: Case, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    torch.manual_seed(0)
    model = case.model(case.config()).to(dtype)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(folder, **options)
    return folder
