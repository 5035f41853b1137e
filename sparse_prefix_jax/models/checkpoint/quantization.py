"""Weights of 8 bits, made whole again; every other quantisation is refused."""

import math
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.models.checkpoint.files import plain_name
from sparse_prefix_jax.models.checkpoint.header import StoredTensor
from sparse_prefix_jax.models.families.fields import Fields, shown

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are not quantised."""

_KEY = "quantization_config"
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_OBSERVED = frozenset(
  {"observer", "observer_kwargs", "targets", "ignore", "version"}
  | {"quantization_status", "global_compression_ratio", "scale_dtype"}
  | {"zp_dtype"}
)


class Quantization(NamedTuple):
  """How weights were quantised: value = stored * scale, in float32.

  Attributes:
    dtype: The type of quantised weights in the files.
    suffix: What the name of a weight's scale ends in, after the weight's.
    block: Rows and columns that share a scale; None if all do, or a row.
    per_row: Whether each row has its own scale.
    kept: Modules that were not quantised.
  """

  dtype: str
  suffix: str
  block: tuple[int, int] | None
  per_row: bool
  kept: tuple[str, ...]

  def check(self, name: str, weight: StoredTensor, scale: StoredTensor) -> None:
    """Refuses a scale that does not fit its weight.

    Args:
      name: Name of the weight.
      weight: The quantised weight.
      scale: Its scale.

    Raises:
      ValueError: If the module was not to be quantised, or if shape or type of
        the scale are others.
    """
    module = name.removesuffix(".weight")
    if any(_covers(kept, module) for kept in self.kept):
      raise ValueError(
        f"{shown(weight.name)} in {weight.file} is {self.dtype}, but its "
        "module is one that was not quantised, by config.json."
      )
    allowed = self._shapes(weight.shape)
    if scale.shape not in allowed or scale.dtype not in _SCALES:
      raise ValueError(
        f"{shown(scale.name)} in {scale.file} is {scale.dtype} of shape "
        f"{shown(scale.shape)}; a scale of a weight {shown(weight.shape)} must "
        f"be {', '.join(_SCALES)} of shape {' or '.join(map(shown, allowed))}."
      )

  def _shapes(self, weight: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes that the scale of a weight [... rows columns] may have."""
    if len(weight) < 2:
      return []
    *outer, rows, columns = weight
    if self.per_row:
      return [(*outer, rows, 1)]
    if self.block is None:
      return [(), (1,), (1, 1)]
    high, wide = self.block
    return [(*outer, math.ceil(rows / high), math.ceil(columns / wide))]

  def factors(
    self, scale: np.ndarray, shape: tuple[int, ...], first: int, last: int
  ) -> np.ndarray:
    """Spreads a scale over some rows of its weight.

    Args:
      scale: The whole scale, in float32.
      shape: The shape of the weight.
      first: The first index along its first axis.
      last: The one after the last.

    Returns:
      What to multiply the stored values by; it broadcasts.
    """
    if self.per_row:
      return scale[first:last]
    if self.block is None:
      return scale.reshape((1,) * len(shape))
    # A block may be larger than its weight; a scale is spread no further.
    high, wide = map(min, self.block, shape[-2:])
    if len(shape) == 2:
      part = scale[np.arange(first, last) // high]
    else:
      part = np.repeat(scale[first:last], high, -2)[..., : shape[-2], :]
    return np.repeat(part, wide, -1)[..., : shape[-1]]


def read_quantization(outer: Fields, text: Fields) -> Quantization | None:
  """Reads whether weights are quantised, and how.

  Args:
    outer: The whole configuration.
    text: That of the text model, often the same.

  Returns:
    None if they are not.

  Raises:
    ValueError: If they are in a way that is not made whole here; it is named.
  """
  for fields in (outer, text):
    if fields.get("quantization") is not None:
      raise fields.error("quantization", "MLX's quantisation is not read here")
  found = [f.within(_KEY) for f in dict.fromkeys((outer, text))]
  given = [fields for fields in found if fields is not None]
  if not given:
    return None
  fields = given[0]
  if any(other.values != fields.values for other in given):
    raise ValueError(f"{fields.where} and {given[1].where} differ.")
  method = fields.get("quant_method")
  if method == "fp8":
    return _fp8(fields)
  if method == "compressed-tensors":
    return _compressed(fields)
  raise fields.error(
    "quant_method", "only fp8 and compressed-tensors (int-quantized) are read"
  )


def _fp8(fields: Fields) -> Quantization:
  """Reads 8-bit floats with a scale for each block, or for each weight."""
  fields.only("activation_scheme", "dynamic")
  fields.only("fmt", "e4m3")
  fields.only("scale_fmt", "float", "ue8m0")
  block = _block(fields)
  kept = fields.texts("modules_to_not_convert") or []
  fields.refuse_unread({"dequantize"})
  return Quantization("F8_E4M3", "_scale_inv", block, False, _plain(kept))


def _block(fields: Fields) -> tuple[int, int] | None:
  """Reads how many rows and columns share a scale; None if all do."""
  block = fields.get("weight_block_size")
  if block is None:
    return None
  sizes = block if isinstance(block, list) else []
  if len(sizes) != 2 or not all(is_int(n) and 0 < n <= 2**20 for n in sizes):
    raise fields.error("weight_block_size", "it must be two ints above 0")
  return sizes[0], sizes[1]


def _compressed(fields: Fields) -> Quantization:
  """Reads 8-bit integers with a scale for each row."""
  fields.only("format", "int-quantized")
  if fields.get("format") is None:
    raise fields.error("format", "only int-quantized is read")
  fields.only("kv_cache_scheme")
  kept = fields.texts("ignore") or []
  groups = fields.within("config_groups") or Fields({}, fields.where)
  for group in map(groups.within, groups.values):
    if group is not None:
      _check_group(group)
  fields.refuse_unread(_OBSERVED)
  return Quantization("I8", "_scale", None, True, _plain(kept))


def _check_group(group: Fields) -> None:
  """Refuses weights or activations that are quantised in another way.

  Activations that are quantised as they come have no tensors; here they stay
  as they are.
  """
  group.only("format", "int-quantized")
  group.only("output_activations")
  for name in ("weights", "input_activations"):
    part = group.within(name)
    if part is None:
      continue
    part.only("num_bits", 8)
    part.only("type", "int")
    if name == "weights":
      part.only("symmetric", True)
      part.only("strategy", "channel")
      part.only("dynamic", False)
    else:
      part.only("dynamic", True)
    part.refuse_unread(_OBSERVED | {"symmetric", "strategy"})
  group.refuse_unread(_OBSERVED)


def _plain(modules: list[str]) -> tuple[str, ...]:
  """Names of modules without prefixes; patterns are left to the files."""
  return tuple(plain_name(m) for m in modules if not m.startswith("re:"))


def _covers(kept: str, module: str) -> bool:
  """Whether a name of the list is that of a module, or of one around it."""
  return f".{module}.".find(f".{kept}.") >= 0 if kept else False
