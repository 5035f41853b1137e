"""Values of stored tensors, a few rows at a time."""

import math
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np

from sparse_prefix_jax.models.checkpoint.header import StoredTensor, damaged
from sparse_prefix_jax.models.checkpoint.quantization import Quantization
from sparse_prefix_jax.models.families.fields import shown

_SLAB = 1 << 18  # elements that are converted at a time
_DTYPES: dict[str, Any] = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
  "I8": np.int8,
}


def read_tensor(
  tensor: StoredTensor, dtype: Any, order: Literal["C", "F"] = "C"
) -> np.ndarray:
  """Reads a tensor that is not quantised.

  Args:
    tensor: Where it lies.
    dtype: What its values are rounded to.
    order: How the result is laid out in memory.

  Raises:
    ValueError: If the file has changed, or a value is not finite.
  """
  result = np.empty(tensor.shape, dtype, order)
  for first, last, rows in _slabs(tensor):
    _set(tensor, result, first, last, rows)
  return result


def read_quantized(
  tensor: StoredTensor,
  scale: StoredTensor,
  quantization: Quantization,
  dtype: Any,
  order: Literal["C", "F"] = "C",
) -> np.ndarray:
  """Reads a quantised tensor: multiplied in float32, rounded once.

  Args:
    tensor: The stored weight.
    scale: Its scale.
    quantization: How one belongs to the other.
    dtype: What the values are rounded to.
    order: How the result is laid out in memory.

  Raises:
    ValueError: If a file has changed, or a value is not finite.
  """
  factors = read_tensor(scale, np.float32)
  result = np.empty(tensor.shape, dtype, order)
  for first, last, rows in _slabs(tensor):
    spread = quantization.factors(factors, tensor.shape, first, last)
    _set(tensor, result, first, last, rows.astype(np.float32) * spread)
  return result


def equal_values(one: StoredTensor, other: StoredTensor) -> bool:
  """Whether two tensors hold the same numbers, whatever their types."""
  if one.shape != other.shape:
    return False
  pairs = zip(_slabs(one), _slabs(other))
  return all(
    np.array_equal(a.astype(np.float64), b.astype(np.float64))
    for (_, _, a), (_, _, b) in pairs
  )


def _set(
  tensor: StoredTensor,
  result: np.ndarray,
  first: int,
  last: int,
  rows: np.ndarray,
) -> None:
  """Rounds some rows into the result, and refuses what is not finite."""
  flat = result.reshape(1) if result.ndim == 0 else result
  with np.errstate(over="ignore", invalid="ignore"):
    flat[first:last] = rows
  if not np.isfinite(flat[first:last]).all():
    raise ValueError(
      f"{shown(tensor.name)} in {tensor.file} holds values that are not "
      f"finite in {result.dtype}; its weights are damaged."
    )


def _slabs(tensor: StoredTensor) -> Iterator[tuple[int, int, np.ndarray]]:
  """Yields first, last and values of a few rows after another.

  Rows are along the first axis; a scalar is one row, and what is empty has none
  whatever its shape says.
  """
  shape = tensor.shape or (1,)
  if not math.prod(shape):
    return
  width = math.prod(shape[1:])
  count = max(1, _SLAB // max(width, 1))
  dtype = np.dtype(_DTYPES[tensor.dtype])
  try:
    with tensor.file.open("rb") as file:
      file.seek(tensor.start)
      for first in range(0, shape[0], count):
        last = min(first + count, shape[0])
        values = _read(file, tensor, (last - first) * width, dtype)
        yield first, last, values.reshape(last - first, *shape[1:])
  except OSError as error:
    reason = f"{tensor.file} cannot be read: {error.strerror}."
    raise ValueError(reason) from error


def _read(
  file: BinaryIO, tensor: StoredTensor, count: int, dtype: np.dtype
) -> np.ndarray:
  """Reads that many values; a file that was whole may have changed since."""
  content = file.read(count * dtype.itemsize)
  if len(content) != count * dtype.itemsize:
    raise damaged(tensor.file, f"it ends within {shown(tensor.name)}")
  return np.frombuffer(content, dtype)
