"""The model that the flags name, or that of the demo, with its tokenizer."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags


class ServedModel(NamedTuple):
  """What answers.

  Attributes:
    model: The model.
    tokenizer: Its tokenizer, with the chat template.
    name: What people call it.
  """

  model: Any
  tokenizer: Any
  name: str


_WEIGHTS, _CURVE = "model.safetensors", "curve.json"


def open_served_model(
  values: flags.FlagValues, *, ladder: tuple[int, ...] | None = None
) -> ServedModel:
  """Reads the model of `--model`, or makes that of the demo.

  The folder of `train` has no config.json: its model is the preset "recall".

  Args:
    values: the flags of a command, among them model, dtype, page_dtype and
      max_length.
    ladder: how many chunks a program takes; None for what fits the model.

  Raises:
    ValueError: model and tokenizer do not belong together, or a file is
      damaged.
    OSError: the model cannot be read.
  """
  tokenizers = importlib.import_module(
    "sparse_prefix_jax.serving.text.tokenizer"
  )
  given = {
    "dtype": values.dtype,
    "page_dtype": values.page_dtype,
    "max_length": values.max_length,
    "ladder": ladder,
  }
  changes = {name: x for name, x in given.items() if x is not None}
  if values.model is None or _is_of_a_training(Path(values.model)):
    weights = Path(values.model) / _WEIGHTS if values.model else None
    return _recalling(weights, changes)
  # The tokenizer first: it is read at once, and weights are not.
  tokenizer = tokenizers.TextTokenizer.from_directory(values.model)
  models = importlib.import_module("sparse_prefix_jax.models")
  model, _ = models.load_pretrained(values.model, **changes)
  tokenizer.check_vocabulary(model.config.vocab_size)
  return ServedModel(model, tokenizer, Path(values.model).absolute().name)


def _is_of_a_training(folder: Path) -> bool:
  """Whether `train` wrote a folder, and has finished."""
  written = (folder / name for name in (_WEIGHTS, _CURVE))
  described = (folder / "config.json").exists()
  return all(map(Path.is_file, written)) and not described


def _recalling(weights: Path | None, changes: dict[str, Any]) -> ServedModel:
  """The model of the recall task, with weights of a training or its own."""
  trained = importlib.import_module("sparse_prefix_jax.training.trained")
  recall = importlib.import_module(
    "sparse_prefix_jax.workloads.recall.tokenizer"
  )
  tokenizers = importlib.import_module(
    "sparse_prefix_jax.serving.text.tokenizer"
  )
  tokenizer = tokenizers.TextTokenizer(
    recall.recall_tokenizer(), chat_template=recall.RECALL_TEMPLATE
  )
  name = weights.absolute().parent.name if weights else "recall"
  return ServedModel(trained.trained_model(weights, **changes), tokenizer, name)
