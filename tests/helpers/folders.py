"""Small Hugging Face folders with random weights, one for each task, as save_pretrained does it."""

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
    """A BERT with the head that the class's name says, and a tokenizer of a few words."""
    import transformers
    from transformers import BertConfig

    vocabulary = {word: at for at, word in enumerate(WORDS)}
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
    """A ViT that classifies pictures of 8 by 8, and its processor."""
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
    """Random pictures, [count, 10, 12, 3]."""
    return np.random.default_rng(3).integers(0, 256, (count, 10, 12, 3), dtype=np.uint8)


def save_pictures(folder: Path, count: int) -> list[Path]:
    """Write random pictures into a folder, the first two of them one level down."""
    (folder / "a").mkdir(parents=True)
    paths = [folder / ("a" if at < 2 else "") / f"p{at}.png" for at in range(count)]
    for path, picture in zip(paths, pixels(count), strict=True):
        Image.fromarray(picture).save(path)
    return paths
