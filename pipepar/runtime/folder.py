"""What a Hugging Face folder has beside its model: a tokenizer, an image processor, class names."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

from pipepar.data.classes import Classes
from pipepar.data.pixels import Processor
from pipepar.errors import InputError
from pipepar.model.huggingface import dtype_of, require_config
from pipepar.runtime.options import CLASSIFICATION, Job

_WITH_CLASSES: Final = (*CLASSIFICATION, "token-classification", "raw")

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_tokenizer(folder: str) -> Any:
    """The folder's tokenizer, able to pad. *Local.*

    Raises:
        InputError: there is no such folder, or no tokenizer in it.
    """
    require_config(Path(folder))
    from transformers import AutoTokenizer  # takes seconds; only text needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{folder} holds no tokenizer that transformers can load: {shorten(str(error), 300)}; "
            "copy tokenizer.json and tokenizer_config.json there"
        ) from error
    files = {*tokenizer.vocab_files_names.values(), "tokenizer.json"}
    if tokenizer.vocab_files_names and not any((Path(folder) / name).exists() for name in files):
        raise InputError(
            f"{folder} holds no vocabulary, expected {' or '.join(sorted(files))}; copy it there"
        )
    if tokenizer.pad_token is None:  # decoders were trained without; the mask hides it anyway
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(folder: str) -> Processor:
    """The folder's image processor, whose pixels have the dtype of the model. *Local.*

    It is the one that transformers chooses: of torchvision if that is installed, else of Pillow.

    Raises:
        InputError: there is no such folder, or no image processor in it.
        WeightsError: the configuration names no dtype, and the weights are missing or damaged.
    """
    require_config(Path(folder))
    from transformers import AutoImageProcessor

    try:
        found: Any = AutoImageProcessor
        processor = found.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{folder} holds no image processor that transformers can load: "
            f"{shorten(str(error), 300)}; copy preprocessor_config.json there, or give --preprocess"
        ) from error
    dtype = dtype_of(Path(folder), _config(folder))

    def process(**inputs: Any) -> Any:
        return processor(**inputs).to(dtype)

    return process


def load_classes(job: Job) -> Classes:
    """What the model's classes are called, as far as it says. *Local.*

    Raises:
        InputError: there is no such folder, or its configuration is damaged.
    """
    if not job.is_folder or job.resolved_task not in _WITH_CLASSES:
        return Classes()
    require_config(Path(job.model))
    config = _config(job.model)
    names: dict[Any, str] = config.id2label or {}
    ordered = (names.get(number, f"LABEL_{number}") for number in range(max(names, default=-1) + 1))
    return Classes(tuple(ordered), config.problem_type)


def _config(folder: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{Path(folder) / 'config.json'} cannot be read by the installed transformers: "
            f"{shorten(str(error), 300)}; copy it again, or upgrade transformers"
        ) from error
    return config
