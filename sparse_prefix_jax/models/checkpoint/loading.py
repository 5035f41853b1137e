"""Loads a model from a directory, one tensor after another."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from sparse_prefix_jax.models.checkpoint.description import (
  as_folder,
  describe,
)
from sparse_prefix_jax.models.checkpoint.files import stored_tensors
from sparse_prefix_jax.models.checkpoint.header import StoredTensor
from sparse_prefix_jax.models.checkpoint.quantization import (
  FLOATS,
  Quantization,
)
from sparse_prefix_jax.models.checkpoint.values import (
  equal_values,
  read_quantized,
  read_tensor,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.families.family import Family, Source
from sparse_prefix_jax.models.families.fields import shown

# A buffer of old files: frequencies are computed from the configuration.
_BUFFER = "rotary_emb.inv_freq"


class _Weights(NamedTuple):
  """The tensors that a model is made of.

  Attributes:
    directory: Where they are.
    tensors: Where each lies, by its name without prefixes.
    scales: The name of the scale of each quantised weight.
    quantization: How they are quantised; None if none is.
  """

  directory: pathlib.Path
  tensors: dict[str, StoredTensor]
  scales: dict[str, str]
  quantization: Quantization | None

  def read(self, name: str, dtype: Any, order: Literal["C", "F"]) -> np.ndarray:
    """Reads the values of a weight, rounded once to `dtype`."""
    tensor = self.tensors[name]
    if self.quantization is None or name not in self.scales:
      return read_tensor(tensor, dtype, order)
    scale = self.tensors[self.scales[name]]
    return read_quantized(tensor, scale, self.quantization, dtype, order)


def load_pretrained(
  directory: str | pathlib.Path, **changes: Any
) -> tuple[HybridDecoder, ModelConfig]:
  """Loads the model of a Hugging Face directory, without PyTorch.

  Everything is checked before the first weight is read: files, names, types and
  shapes. A tensor that nobody uses, a key that nobody reads, a stale file or a
  quantisation other than fp8 and int8 is refused by name, since the model would
  be another one. A head of its own is taken where config.json ties it to the
  embeddings and it differs from them. Beside the model as it is held, at most
  two copies of the largest tensor are in memory.

  Args:
    directory: Holds config.json and one or more .safetensors files.
    **changes: Fields of `ModelConfig` or of `Numerics` to replace, for example
      `dtype="bfloat16"` or `ladder=(4,)`. `dtype="auto"`, the default, is that
      of the file; `max_length` is the model's context unless it is given.

  Returns:
    The model and its configuration, which `read_config` explains.

  Raises:
    FileNotFoundError: If config.json, the weights or one of their shards are
      missing.
    ValueError: If it holds an architecture that the library has not, a rotary
      scaling that depends on the total length, a damaged file, values that are
      not finite, a tensor that is missing, superfluous or of another shape; or
      if a field does not exist.

  Example:
    model, config = load_pretrained("Qwen3.5-0.8B", dtype="bfloat16")
  """
  directory = as_folder(directory)
  description = describe(directory, changes)
  tensors = stored_tensors(directory)
  config, family, quantization = description
  repeated = _repetitions(family, tensors) if config.tie_embeddings else set()
  own_head = family.head in tensors and family.head not in repeated
  if own_head and "tie_embeddings" not in changes:
    # As transformers does: what differs from the embeddings was meant.
    config = config.replace(tie_embeddings=False)
  sources = {
    path: source.found_in(tensors) for path, source in family.parameters(config)
  }
  weights = _Weights(
    directory, tensors, _scales(tensors, sources, quantization), quantization
  )
  _check_names(weights, sources.values(), family, repeated)
  _check_types(weights, sources.values())
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  parameters = {path: _parameter(model, path) for path in sources}
  for path, source in sources.items():
    _check_shape(weights, source, parameters[path].shape)
  for path, source in sources.items():
    _fill(weights, source, parameters[path])
  return model, config


def _repetitions(
  family: Family, tensors: Mapping[str, StoredTensor]
) -> set[str]:
  """Finds a head that equals the embeddings; it need not be read twice."""
  head, embedding = (tensors.get(n) for n in (family.head, family.embedding))
  if head is None or embedding is None:
    return set()
  if head.dtype not in FLOATS or embedding.dtype not in FLOATS:
    return set()
  return {family.head} if equal_values(head, embedding) else set()


def _scales(
  tensors: Mapping[str, StoredTensor],
  sources: Mapping[str, Source],
  quantization: Quantization | None,
) -> dict[str, str]:
  """Pairs the quantised weights of the model with their scales.

  Raises:
    ValueError: If a scale is missing or does not fit.
  """
  if quantization is None:
    return {}
  scales = {}
  for name in (name for s in sources.values() for name in s.names):
    weight = tensors.get(name)
    if weight is None or weight.dtype != quantization.dtype:
      continue
    scale = name + quantization.suffix
    if scale not in tensors:
      raise ValueError(
        f"{weight.file} holds {shown(weight.name)} as {weight.dtype} without "
        f"its scale, {shown(weight.name + quantization.suffix)}."
      )
    quantization.check(name, weight, tensors[scale])
    scales[name] = scale
  return scales


def _check_names(
  weights: _Weights,
  sources: Iterable[Source],
  family: Family,
  repeated: set[str],
) -> None:
  """Refuses tensors that are missing, and those that nobody uses."""
  used = {name for source in sources for name in source.names}
  missing = [name for name in used if name not in weights.tensors]
  used |= set(weights.scales.values()) | repeated
  unused = [
    tensor
    for name, tensor in weights.tensors.items()
    if name not in used
    and not name.startswith(family.harmless_tensors)
    and not name.endswith((_BUFFER, *family.harmless_ends))
  ]
  others = (
    f"{len(unused)} that the model of config.json does not use, such as "
    f"{shown(unused[0].name)} in {unused[0].file.name}"
    if unused
    else "none that the model does not use"
  )
  if missing:
    raise ValueError(
      f"{weights.directory} has no tensor {min(missing)}; of its tensors "
      f"there are {others}."
    )
  if unused:
    raise ValueError(
      f"{weights.directory} holds tensors that would be ignored: {others}."
    )


def _check_types(weights: _Weights, sources: Iterable[Source]) -> None:
  """Refuses weights that are no floats and have no scale."""
  for name in (name for source in sources for name in source.names):
    tensor = weights.tensors[name]
    if name not in weights.scales and tensor.dtype not in FLOATS:
      raise ValueError(
        f"{shown(tensor.name)} in {tensor.file} is {tensor.dtype}, which no "
        "quantization_config explains; weights are one of "
        f"{', '.join(FLOATS)}."
      )


def _parameter(model: HybridDecoder, path: str) -> nnx.Param:
  """Follows a dotted path through modules and lists."""
  found: Any = model
  for part in path.split("."):
    found = found[int(part)] if part.isdigit() else getattr(found, part)
  return found


def _listed(values: Sequence[Any]) -> str:
  """Lists a few, and counts the others: experts are hundreds of tensors."""
  plain = (x if isinstance(x, str) else shown(x) for x in values[:2])
  few = " and ".join(plain)
  others = len(values) - 2
  return f"{few} and {others} others" if others > 0 else few


def _check_shape(
  weights: _Weights, source: Source, asked: tuple[int, ...]
) -> None:
  """Refuses tensors that do not make the parameter, by their shapes alone."""
  shapes = [weights.tensors[name].shape for name in source.names]
  names = _listed(source.names)
  if tuple(map(len, shapes)) != source.ranks:
    raise ValueError(
      f"{names} in {weights.directory} has shape "
      f"{_listed(shapes)}; it must have {_listed(source.ranks)} axes."
    )
  # One element is enough for any shape: nothing is read, and little allocated.
  one = np.zeros((), bool)
  whole = all(shape[1:] == shapes[0][1:] for shape in shapes)
  if whole and all(math.prod(shape) for shape in shapes):
    parts = [np.broadcast_to(one, shape) for shape in shapes]
    found = source.convert(*parts).shape
  else:
    found = None
  if found != asked:
    used = "" if found is None else f", as it is used {found}"
    raise ValueError(
      f"{names} in {weights.directory} has shape "
      f"{_listed(shapes)}{used}; config.json asks for {asked}."
    )


def _fill(weights: _Weights, source: Source, parameter: nnx.Param) -> None:
  """Reads and converts the tensors of one parameter.

  It waits for the device, which else would hold several arrays of the host.
  """
  # No name for the parts: with one they would outlive the conversion.
  converted = source.convert(
    *(weights.read(n, parameter.dtype, source.order) for n in source.names)
  )
  value = jax.device_put(converted)
  parameter.set_value(value.block_until_ready())
