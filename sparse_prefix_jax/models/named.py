"""One model out of two ways to name it: a preset, or a folder."""

from typing import Any

from sparse_prefix_jax.models.checkpoint import read_config
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.presets import preset


def named_config(
  preset_name: str | None, directory: str | None, **fields: Any
) -> ModelConfig:
  """Returns the configuration of a preset or of a model's folder.

  Args:
    preset_name: A key of `PRESETS`, or None.
    directory: A folder with a config.json, or None; weights are not read.
    **fields: Fields of `ModelConfig` or of `Numerics` to replace; None replaces
      nothing.

  Returns:
    A frozen configuration.

  Raises:
    ValueError: If not exactly one model is named, or the one that is named
      does not exist or cannot be computed here.
    FileNotFoundError: If the folder holds no config.json.

  Example:
    >>> config = named_config("tiny", None, dtype="bfloat16", chunk=None)
    >>> config.numerics.dtype
    'bfloat16'
  """
  changes = {name: x for name, x in fields.items() if x is not None}
  if (preset_name is None) == (directory is None):
    raise ValueError(
      "one model is needed, of a preset or of a folder (--preset or --model), "
      f"got {'none' if preset_name is None else 'both'}"
    )
  if preset_name is not None:
    return preset(preset_name, **changes)
  return read_config(str(directory), **changes)
