"""The tokenizer, the image processor and the class names of a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from pipepar.data.readers.pixels import Processor
from pipepar.errors import InputError
from pipepar.model.source.huggingface import dtype_of, require_config
from pipepar.tasks.classes import Classes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A Hugging Face folder; each method reads its part of the folder."""

    path: Path
    """The folder; it need not exist before a method is called."""

    def tokenizer(self) -> Any:
        """Return the folder's tokenizer; if it has no padding token, its end token is used.

        Raises:
            InputError: the folder does not exist, or contains no tokenizer.
        """
        require_config(self.path)
        from transformers import AutoTokenizer  # takes seconds; only texts need it

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"{self.path} contains no tokenizer that transformers can load: "
                f"{shorten(str(error), 300)}; copy tokenizer.json and tokenizer_config.json there"
            ) from error
        files = {*tokenizer.vocab_files_names.values(), "tokenizer.json"}
        if tokenizer.vocab_files_names and not any((self.path / name).exists() for name in files):
            raise InputError(
                f"{self.path} contains no vocabulary, expected {' or '.join(sorted(files))}; copy "
                "it there"
            )
        if tokenizer.pad_token is None:  # as in decoders; any token will do: it is masked
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def processor(self) -> Processor:
        """Return the folder's image processor, which returns pixels in the dtype of the model.

        transformers chooses the implementation: torchvision's if it is installed, else Pillow's.

        Raises:
            InputError: the folder does not exist or contains no image processor, or its
                configuration is damaged.
            WeightsError: the configuration names no dtype, and the weights are damaged.
        """
        require_config(self.path)
        from transformers import AutoImageProcessor

        try:
            found: Any = AutoImageProcessor
            processor = found.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"{self.path} contains no image processor that transformers can load: "
                f"{shorten(str(error), 300)}; copy preprocessor_config.json there, or give "
                "--preprocess"
            ) from error
        dtype = dtype_of(self.path, self._config())

        def process(**inputs: Any) -> Any:
            return processor(**inputs).to(dtype)

        return process

    def classes(self) -> Classes:
        """Return the classes that the folder's configuration names.

        Raises:
            InputError: the folder does not exist, or its configuration is damaged.
        """
        require_config(self.path)
        config = self._config()
        names: dict[Any, str] = config.id2label or {}
        count = max(names, default=-1) + 1
        ordered = (names.get(number, f"LABEL_{number}") for number in range(count))
        return Classes(tuple(ordered), config.problem_type)

    def _config(self) -> PreTrainedConfig:
        from transformers import AutoConfig

        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.path / 'config.json'} cannot be read by the installed transformers: "
                f"{shorten(str(error), 300)}; copy it again, or upgrade transformers"
            ) from error
        return config


def classes_of(folder: ModelFolder | None) -> Classes:
    """Return the classes of a folder; classes without names for a model that is not a folder.

    Raises:
        InputError: see `ModelFolder.classes`.
    """
    return Classes() if folder is None else folder.classes()
