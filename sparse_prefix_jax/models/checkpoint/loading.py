"""Loads a model from a directory, one tensor after another."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sparse_prefix_jax.models.checkpoint.description import (
  Description,
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

  def read(self, name: str, dtype: Any) -> np.ndarray:
    """Reads the values of a weight, rounded once to `dtype`."""
    if self.quantization is None or name not in self.scales:
      return read_tensor(self.tensors[name], dtype)
    scale = self.tensors[self.scales[name]]
    return read_quantized(self.tensors[name], scale, self.quantization, dtype)


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
    **changes: Fields of `ModelConfig` to replace, for example
      `dtype="bfloat16"` or `ladder=(4,)`. `dtype="auto"`, the default, is that
      of the file; `max_length` is the model's context unless it is given.

  Returns:
    The model and its configuration, which `read_config` explains.

  Raises:
    FileNotFoundError: If config.json, the weights or one of their shards are
      missing.
    ValueError: If it holds another architecture (a mixture of experts, say), a
      rotary scaling that depends on the total length, a damaged file, values
      that are not finite, a tensor that is missing, superfluous or of another
      shape; or if a field does not exist.

  Example:
    model, config = load_pretrained("Qwen3.5-0.8B", dtype="bfloat16")
  """
  directory = pathlib.Path(directory)
  description = describe(directory, changes)
  tensors = stored_tensors(directory)
  if "tie_embeddings" not in changes:
    description = _with_own_head(description, tensors)
  config, family, quantization = description
  sources = dict(family.parameters(config))
  weights = _Weights(
    directory, tensors, _scales(tensors, sources, quantization), quantization
  )
  _check_names(weights, sources.values(), family)
  _check_types(weights, sources.values())
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  parameters = {path: _parameter(model, path) for path in sources}
  for path, source in sources.items():
    _check_shape(weights, source, parameters[path].shape)
  for path, source in sources.items():
    _fill(weights, source, parameters[path])
  return model, config


def _with_own_head(
  description: Description, tensors: Mapping[str, StoredTensor]
) -> Description:
  """Unties a head that differs from the embeddings, as transformers does.

  One that equals them is taken out: it is a repetition.
  """
  family, config = description.family, description.config
  head = tensors.get(family.head)
  embedding = tensors.get(family.embedding)
  if not config.tie_embeddings or head is None or embedding is None:
    return description
  if head.dtype not in FLOATS or embedding.dtype not in FLOATS:
    return description
  if equal_values(head, embedding):
    return description
  untied = dataclasses.replace(config, tie_embeddings=False)
  return description._replace(config=untied)


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
  weights: _Weights, sources: Iterable[Source], family: Family
) -> None:
  """Refuses tensors that are missing, and those that nobody uses."""
  used = {name for source in sources for name in source.names}
  missing = [name for name in used if name not in weights.tensors]
  used |= set(weights.scales.values())
  if family.head in weights.tensors:
    used.add(family.head)  # equal to the embeddings, or it would be used
  unused = [
    tensor
    for name, tensor in weights.tensors.items()
    if name not in used
    and not name.startswith(family.harmless_tensors)
    and not name.endswith(_BUFFER)
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


def _check_shape(
  weights: _Weights, source: Source, asked: tuple[int, ...]
) -> None:
  """Refuses tensors that do not make the parameter, by their shapes alone."""
  shapes = [weights.tensors[name].shape for name in source.names]
  names = " and ".join(source.names)
  if tuple(map(len, shapes)) != source.ranks:
    raise ValueError(
      f"{names} in {weights.directory} has shape "
      f"{' and '.join(map(str, shapes))}; it must have "
      f"{' and '.join(map(str, source.ranks))} axes."
    )
  # One element is enough for any shape: nothing is read, and little allocated.
  one = np.zeros((), bool)
  whole = all(shape[1:] == shapes[0][1:] for shape in shapes)
  parts = [np.broadcast_to(one, shape) for shape in shapes]
  found = source.convert(*parts).shape if whole else None
  if found != asked:
    raise ValueError(
      f"{names} in {weights.directory} has shape "
      f"{' and '.join(map(str, shapes))}, as it is used {found}; config.json "
      f"asks for {asked}."
    )


def _fill(weights: _Weights, source: Source, parameter: nnx.Param) -> None:
  """Reads and converts the tensors of one parameter.

  Each step lets go of what the step before made.
  """
  dtype = parameter.dtype
  parts = [weights.read(name, dtype) for name in source.names]
  value = source.convert(*parts)
  del parts
  value = np.ascontiguousarray(value)
  parameter.set_value(jnp.asarray(value))
