"""Headers of safetensors files, read without their library.

The library names no NumPy type for 8-bit floats, and says of a damaged file
what its parser thinks. The format is small: eight bytes hold the length of a
JSON object, which tells type, shape and place of each tensor; their bytes
follow without holes.
"""

import math
import pathlib
from typing import Any, NamedTuple

from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.models.checkpoint.json_object import parse_json_object
from sparse_prefix_jax.models.families.fields import shown

_LONGEST_HEADER = 100_000_000
_MOST_AXES = 8
# Bits of every type of the format; some are less than a byte.
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "BOOL": 8}
_BITS |= {f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)}
_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
_BITS |= {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}


class StoredTensor(NamedTuple):
  """Where a tensor lies, and as what.

  Attributes:
    file: The file that holds it.
    name: Its name there.
    dtype: Its type as the format spells it, for example "BF16".
    shape: Its shape.
    start: Its first byte in the file.
  """

  file: pathlib.Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  start: int


def read_header(file: pathlib.Path) -> list[StoredTensor]:
  """Lists the tensors of a file; it is whole if their bytes fill it.

  Args:
    file: A safetensors file.

  Returns:
    Its tensors, in the order of the header.

  Raises:
    ValueError: If it is damaged or cannot be read, or if MLX wrote it.
  """
  header, data, size = _read(file)
  _metadata(file, header)
  tensors = [_tensor(file, name, entry, data) for name, entry in header.items()]
  _check_filled(file, [end for _, end in tensors], header, size - data)
  return [tensor for tensor, _ in tensors]


def read_metadata(file: pathlib.Path) -> dict[str, str]:
  """Returns what a file says besides its tensors.

  Args:
    file: A safetensors file.

  Raises:
    ValueError: If it is damaged or cannot be read, or if MLX wrote it.
  """
  return _metadata(file, _read(file)[0])


def _read(file: pathlib.Path) -> tuple[dict[str, Any], int, int]:
  """Reads the header: what it says, where the data begins, and ends."""
  if file.is_dir():
    raise ValueError(f"{file} is a folder; it must be a file.")
  try:
    size = file.stat().st_size
    with file.open("rb") as opened:
      length = int.from_bytes(opened.read(8), "little")
      content = opened.read(min(length, _LONGEST_HEADER, size))
  except OSError as error:
    raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
  if size < 8 or length > min(size - 8, _LONGEST_HEADER):
    raise damaged(file, f"its {size} bytes cannot hold the header")
  return parse_json_object(content, f"the header of {file}"), 8 + length, size


def damaged(file: pathlib.Path, why: str) -> ValueError:
  """Makes the sentence for a file that is not what its format asks for."""
  return ValueError(f"{file} is damaged: {why}.")


def _metadata(file: pathlib.Path, header: dict[str, Any]) -> dict[str, str]:
  """Takes the metadata out; other forms, and what MLX changed, are refused.

  MLX adds one to the weights of norms and turns convolutions, under the same
  names.
  """
  metadata = header.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise damaged(file, "__metadata__ must be an object of strings")
  if metadata.get("format") == "mlx":
    raise ValueError(
      f"{file} was written by MLX, which stores norms and convolutions in "
      "another way; convert the original checkpoint instead."
    )
  return metadata


def _tensor(
  file: pathlib.Path, name: str, entry: Any, data: int
) -> tuple[StoredTensor, int]:
  """Reads one entry of the header: the tensor, and where it ends."""
  keys = {"dtype", "shape", "data_offsets"}
  if not isinstance(entry, dict) or set(entry) != keys:
    raise damaged(file, f"{shown(name)} has no dtype, shape and data_offsets")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in _BITS:
    raise damaged(file, f"{shown(name)} has the dtype {shown(dtype)}")
  if not _are_counts(shape) or len(shape) > _MOST_AXES:
    raise damaged(file, f"{shown(name)} has the shape {shown(shape)}")
  if not _are_counts(offsets) or len(offsets) != 2:
    raise damaged(file, f"{shown(name)} lies at {shown(offsets)}")
  start, end = offsets
  if (end - start) * 8 != math.prod(shape) * _BITS[dtype]:
    raise damaged(
      file,
      f"{shown(name)} has {shown(end - start)} bytes, which are not those of "
      f"{dtype} {shown(shape)}",
    )
  return StoredTensor(file, name, dtype, tuple(shape), data + start), end


def _are_counts(value: Any) -> bool:
  return isinstance(value, list) and all(is_int(x) and x >= 0 for x in value)


def _check_filled(
  file: pathlib.Path, ends: list[int], header: dict[str, Any], size: int
) -> None:
  """Refuses tensors that overlap, leave holes, or do not end with the file."""
  starts = [entry["data_offsets"][0] for entry in header.values()]
  reached = 0
  for start, end in sorted(zip(starts, ends)):
    if start != reached:
      raise damaged(
        file, f"no tensor begins at byte {shown(reached)} of its data"
      )
    reached = end
  if reached != size:
    raise damaged(
      file, f"its tensors have {shown(reached)} bytes, and it holds {size}"
    )
