"""Token files (.npz): rows of ids, each shortened by what its group repeats.

Row i begins with the first `common_with_prev[i]` ids of the previous row of its
group; `tail` holds the remaining ids of all rows end to end. Arrays: `group`,
`n_tokens`, `common_with_prev` [rows] and `tail` [ids]; and, where a model has
answered, `n_answer` [rows]: how many of the last ids of each row it decoded.
"""

from pathlib import Path

import numpy as np

from sparse_prefix_jax.kinds import check_class, path_of
from sparse_prefix_jax.whole_numbers import check_at_least
from sparse_prefix_jax.workloads.arrays import MAX_BYTES, read_vectors
from sparse_prefix_jax.workloads.request import (
  Trace,
  check_token_ids,
  common_prefix,
  token_trace,
)
from sparse_prefix_jax.writable import naming

_FIELDS = ("group", "n_tokens", "common_with_prev", "tail")
_ANSWER = "n_answer"


def _check_rows(
  name: str, fields: dict[str, np.ndarray], max_bytes: int
) -> None:
  """Raises ValueError where the arrays do not fit each other, or the memory."""
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
  # A few ids in tail can stand for any number of them in the rows.
  unpacked = sum(lengths.tolist()) * np.dtype(np.int32).itemsize
  if unpacked > max_bytes:
    raise ValueError(
      f"{name} declares rows of {unpacked} bytes, more than"
      f" max_bytes={max_bytes}"
    )
  check_token_ids(f"{name}: tail", fields["tail"])


def _check_answers(name: str, answers: np.ndarray, lengths: np.ndarray) -> None:
  """Raises ValueError for answers that leave a row no prompt."""
  if len(answers) != len(lengths):
    raise ValueError(
      f"{name}: {_ANSWER} must have one value for each of {len(lengths)} rows,"
      f" got {len(answers)}"
    )
  bad = (answers < 0) | (answers >= lengths)
  if np.any(bad):
    row = int(np.argmax(bad))
    raise ValueError(
      f"{name}: {_ANSWER} of row {row} must be at least 0 and below its"
      f" {lengths[row]} tokens, got {answers[row]}"
    )


def _rows(name: str, fields: dict[str, np.ndarray]) -> list[np.ndarray]:
  """The rows, each put together from its group's previous row and `tail`."""
  rows: list[np.ndarray] = []
  previous: dict[int, np.ndarray] = {}
  offset, tail = 0, fields["tail"].astype(np.int32)
  columns = (fields[field].tolist() for field in _FIELDS[:3])
  for index, (group, length, common) in enumerate(zip(*columns)):
    head = previous.get(group, tail[:0])[:common]
    if len(head) < common:
      raise ValueError(
        f"{name}: row {index} shares {common} tokens with a previous row of"
        f" {len(head)}"
      )
    own = tail[offset : offset + length - common]
    row = np.concatenate([head, own])
    offset += length - common
    previous[group] = row
    rows.append(row)
  return rows


def load_token_file(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Trace:
  """Reads a token file, in file order.

  Args:
    path: an .npz file.
    max_bytes: bytes that its arrays may declare, and that its rows may take
      when they are put together; a file that declares more is not read.

  Returns:
    A trace of token ids; requests have an `answer` where the file has
    `n_answer`.

  Raises:
    OSError: the file cannot be opened; there is none, say, or it is a folder.
    ValueError: it is malformed, truncated, empty, or larger than `max_bytes`.

  >>> import tempfile
  >>> trace = token_trace("two", [[1, 2, 3], [1, 2, 4, 5]], [0, 0], [0, 2])
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_token_file(Path(folder, "two.npz"), trace)
  ...   again = load_token_file(Path(folder, "two.npz"))
  >>> [(r.prompt.tolist(), r.answer) for r in again.requests]
  [([1, 2, 3], 0), ([1, 2], 2)]
  """
  path = path_of("path", path)
  max_bytes = check_at_least("max_bytes", max_bytes, 0)
  fields = read_vectors(
    path, _FIELDS, (_ANSWER,), what="token file", max_bytes=max_bytes
  )
  _check_rows(path.name, fields, max_bytes)
  answers = fields.get(_ANSWER)
  if answers is not None:
    _check_answers(path.name, answers, fields["n_tokens"])
    answers = answers.tolist()
  rows = _rows(path.name, fields)
  return token_trace(path.name, rows, fields["group"].tolist(), answers)


def save_token_file(path: str | Path, trace: Trace) -> None:
  """Writes a trace of token ids in the format that `load_token_file` reads.

  Args:
    path: the .npz file to write, under exactly this name.
    trace: token ids; only ids, groups, answers and the order are kept.

  Raises:
    ValueError: the trace has blocks instead of tokens, or no requests.
    OSError: the file cannot be written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = Path(folder, "one.npz")
  ...   save_token_file(file, token_trace("one", [[1, 2, 3]], [0]))
  ...   load_token_file(file).longest
  3
  """
  check_class("trace", trace, Trace, "of `token_trace`")
  path = path_of("path", path)
  if trace.block != 1:
    raise ValueError(f"trace must hold token ids, got blocks of {trace.block}")
  if not len(trace):
    raise ValueError(f"trace must hold requests, {trace.name} has none")
  common, tails = [], []
  previous: dict[int, np.ndarray] = {}
  for request in trace.requests:
    before = previous.get(request.group, request.ids[:0])
    shared = common_prefix(before, request.ids)
    common.append(shared)
    tails.append(request.ids[shared:])
    previous[request.group] = request.ids
  columns = {
    "group": [request.group for request in trace.requests],
    "n_tokens": [request.length for request in trace.requests],
    "common_with_prev": common,
    _ANSWER: [request.answer for request in trace.requests],
  }
  # A file without answers stays one that older readers know.
  if not any(columns[_ANSWER]):
    del columns[_ANSWER]
  arrays = {name: np.array(column) for name, column in columns.items()}
  arrays["tail"] = np.concatenate(tails)
  # NumPy would add .npz to a name that has another suffix.
  with naming(path), path.open("wb") as file:
    np.savez_compressed(file, allow_pickle=False, **arrays)
