"""Small Hugging Face folders with random weights, written by save_pretrained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"the quick brown fox jump ##s over a lazy dog .".split(),
]


def text_folder(path: Path, model: str, layers: int = 2, **options: Any) -> Path:
    """Save a BERT of the named class and a tokenizer with a few words, and return the folder."""
    import transformers
    from transformers import BertConfig

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=16)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
        **options,
    )
    getattr(transformers, model)(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def picture_folder(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a ViT that classifies pictures of 8 x 8, and its processor, and return the folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(6)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        initializer_range=0.5,
        id2label={0: "cat", 1: "dog", 2: "bird"},
        label2id={"cat": 0, "dog": 1, "bird": 2},
    )
    model: nn.Module = ViTForImageClassification(config)
    model.to(dtype).save_pretrained(path)  # type: ignore[operator]
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(path)
    return path


def pixels(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return random pictures, uint8 [count, 10, 12, 3]."""
    return np.random.default_rng(3).integers(0, 256, (count, 10, 12, 3), dtype=np.uint8)


def save_pictures(folder: Path, count: int) -> list[Path]:
    """Write random pictures, the first two into the sub-folder a, and return their paths."""
    (folder / "a").mkdir(parents=True)
    paths = [folder / ("a" if n < 2 else "") / f"p{n}.png" for n in range(count)]
    for path, picture in zip(paths, pixels(count), strict=True):
        Image.fromarray(picture).save(path)
    return paths
