"""The model that ships with the package: trained on the recall task."""

import importlib.resources
import pathlib
from typing import Any

from flax import nnx

from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.presets import preset
from sparse_prefix_jax.training.weights import load_weights

# A folder without code: importable, hence found in a wheel as in a checkout.
_FOLDER = "sparse_prefix_jax.training.trained_weights"
_FILE = "recall.safetensors"


def trained_model(
  weights: str | pathlib.Path | None = None, **changes: Any
) -> HybridDecoder:
  """Returns the preset "recall" with the weights that ship, or other ones.

  They are stored in bfloat16 and held in the dtype of the numerics.

  Args:
    weights: The model.safetensors of `train`; None for what ships.
    **changes: Fields of `Numerics` to replace, for example `ladder=(4,)`.

  Returns:
    The model; its tokenizer is `workloads.recall.recall_tokenizer`.

  Raises:
    ValueError: If a field does not exist, or weights are of another
      architecture.
    OSError: If the file cannot be read.

  Example:
    >>> trained_model().config.vocab_size
    704
  """
  model = HybridDecoder(preset("recall", **changes), rngs=nnx.Rngs(0))
  if weights is not None:
    return load_weights(pathlib.Path(weights), model)
  file = importlib.resources.files(_FOLDER) / _FILE
  with importlib.resources.as_file(file) as path:
    return load_weights(path, model)
