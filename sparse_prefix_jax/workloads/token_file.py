"""Token files (.npz): rows of ids, each shortened by what its group repeats.

Row i begins with the first `common_with_prev[i]` ids of the previous row of its
group; `tail` holds the remaining ids of all rows end to end. Arrays: `group`,
`n_tokens`, `common_with_prev` [rows] and `tail` [ids].
"""

import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sparse_prefix_jax.workloads.request import (
  Trace,
  check_ids,
  common_prefix,
  token_trace,
)

# What NumPy and zipfile raise for damaged, encrypted or foreign archives.
_DAMAGED = (
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  ValueError,
  EOFError,
  KeyError,
  RuntimeError,
  OverflowError,
  MemoryError,
)

_FIELDS = ("group", "n_tokens", "common_with_prev", "tail")


def _read_fields(path: Path) -> dict[str, np.ndarray]:
  """The four arrays as int64; ValueError where one is missing or unreadable."""
  try:
    with path.open("rb") as file, zipfile.ZipFile(file):
      file.seek(0)
      with np.load(file) as archive:
        fields = {name: archive[name] for name in _FIELDS}
  except _DAMAGED as error:
    raise ValueError(
      f"{path.name} is no token file (.npz with {', '.join(_FIELDS)}): {error}"
    ) from None
  for name, field in fields.items():
    if field.ndim != 1 or field.dtype.kind not in "iu":
      raise ValueError(
        f"{path.name}: {name} must be a vector of integers, got"
        f" {field.dtype} {field.shape}"
      )
    if field.dtype == np.uint64 and np.any(field > np.iinfo(np.int64).max):
      raise ValueError(
        f"{path.name}: {name} must be below 2**63, got {field.max()}"
      )
  return {name: field.astype(np.int64) for name, field in fields.items()}


def _check_rows(name: str, fields: dict[str, np.ndarray]) -> None:
  """Raises ValueError where the four arrays do not fit each other."""
  lengths, common = fields["n_tokens"], fields["common_with_prev"]
  if not len(fields["group"]) == len(lengths) == len(common):
    raise ValueError(f"{name}: group, n_tokens and common_with_prev differ")
  if np.any(common < 0) or np.any(lengths < common):
    row = int(np.argmax((common < 0) | (lengths < common)))
    raise ValueError(
      f"{name}: row {row} shares {common[row]} of {lengths[row]} tokens"
    )
  # Summed in Python, which cannot wrap.
  needed, held = sum((lengths - common).tolist()), len(fields["tail"])
  if needed != held:
    raise ValueError(
      f"{name} is truncated: its rows need {needed} ids in tail, it has {held}"
    )
  check_ids(f"{name}: tail", fields["tail"])


def load_token_file(path: str | Path) -> Trace:
  """Reads a token file, in file order.

  Args:
    path: an .npz file.

  Returns:
    A trace of token ids.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is malformed, truncated or empty.
  """
  path = Path(path)
  fields = _read_fields(path)
  _check_rows(path.name, fields)
  rows: list[np.ndarray] = []
  previous: dict[int, np.ndarray] = {}
  offset, tail = 0, fields["tail"].astype(np.int32)
  columns = (fields[name].tolist() for name in _FIELDS[:3])
  for index, (group, length, common) in enumerate(zip(*columns)):
    head = previous.get(group, tail[:0])[:common]
    if len(head) < common:
      raise ValueError(
        f"{path.name}: row {index} shares {common} tokens with a previous row"
        f" of {len(head)}"
      )
    own = tail[offset : offset + length - common]
    row = np.concatenate([head, own])
    offset += length - common
    previous[group] = row
    rows.append(row)
  return token_trace(path.name, rows, fields["group"].tolist())


def save_token_file(path: str | Path, trace: Trace) -> None:
  """Writes a trace of token ids in the format that `load_token_file` reads.

  Args:
    path: the .npz file to write.
    trace: token ids; only ids, groups and order are kept.

  Raises:
    ValueError: the trace has blocks instead of tokens.
    OSError: the file cannot be written.
  """
  if trace.block != 1:
    raise ValueError(f"trace must hold token ids, got blocks of {trace.block}")
  common, tails = [], []
  previous: dict[int, np.ndarray] = {}
  for request in trace.requests:
    before = previous.get(request.group, request.ids[:0])
    shared = common_prefix(before, request.ids)
    common.append(shared)
    tails.append(request.ids[shared:])
    previous[request.group] = request.ids
  np.savez_compressed(
    path,
    group=np.array([r.group for r in trace.requests]),
    n_tokens=np.array([r.length for r in trace.requests]),
    common_with_prev=np.array(common),
    tail=np.concatenate(tails),
  )
