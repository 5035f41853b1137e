"""Mooncake traces: one JSON object per request, prompts as hashed blocks.

Fields: `timestamp` (ms), `input_length`, `output_length` (tokens) and
`hash_ids`, one per block; requests share a prefix exactly as long as their
leading ids agree. A trailing partial block is neither matched nor stored.

The public Bailian traces are of the same form, with blocks of 16 tokens and
timestamps in seconds, and are read as well.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from sparse_prefix_jax.kinds import brief, check_flag, path_of
from sparse_prefix_jax.whole_numbers import is_whole
from sparse_prefix_jax.workloads.block_sizes import (
  PromptSize,
  better_block,
  block_size_of,
  misfit,
)
from sparse_prefix_jax.workloads.lines import json_lines
from sparse_prefix_jax.workloads.request import Trace, TraceRequest

TIME_UNITS = {"ms": 1000, "s": 1}
"""Units of `timestamp`, and how many of them are a second."""

# Milliseconds since 1970 are about 2e12; float64 counts them exactly to 9e15.
_LATEST = 1e15

# No server takes a thousand requests a second; a few lines may be of one burst.
_FAST, _FEW = 1000, 100


class TraceWarning(UserWarning):
  """What a trace made its reader assume, or skip; one sentence."""


class _Line(NamedTuple):
  """One request as it stands in the file.

  Attributes:
    number: of the line, from 1.
    length: tokens of the prompt.
    ids: one per block, that of a trailing partial block included.
    time: the timestamp in its own unit, or None.
  """

  number: int
  length: int
  ids: list[int]
  time: int | float | None


@dataclasses.dataclass
class _Skipped:
  """The lines that were left out: how many, and why the first was."""

  count: int = 0
  first: str = ""

  def add(self, error: ValueError) -> None:
    """Counts a line; the error itself would keep the line in memory."""
    self.first = self.first or str(error)
    self.count += 1


def _is_count(value: Any) -> TypeGuard[int]:
  """Whether a JSON value is an integer that is not negative."""
  return is_whole(value) and int(value) >= 0


def _check(where: str, fields: dict[str, Any]) -> None:
  """Raises ValueError with the line number for fields that cannot be used."""
  for name in ("input_length", "hash_ids"):
    if name not in fields:
      raise ValueError(
        f"{where} has no {name}; a line of a trace has input_length, hash_ids"
        " and perhaps a timestamp; token ids make a token file, by"
        " `token_trace` and `save_token_file`"
      )
  length, hashes = fields["input_length"], fields["hash_ids"]
  if not _is_count(length) or length == 0:
    raise ValueError(
      f"{where}: input_length must be a positive integer, got {brief(length)}"
    )
  if not isinstance(hashes, list) or not all(map(_is_count, hashes)):
    raise ValueError(f"{where}: hash_ids must be a list of integers >= 0")
  time = fields.get("timestamp", 0)
  number = isinstance(time, int | float) and not isinstance(time, bool)
  # Python compares integers of any size with a float, and NaN with nothing.
  if not number or not -_LATEST <= time <= _LATEST:
    raise ValueError(
      f"{where}: timestamp must be a number within +-{_LATEST:.0e}, got"
      f" {brief(time)}"
    )


def _read(
  path: Path, on_bad: Callable[[ValueError], None] | None
) -> list[_Line]:
  """The requests in file order; ids of any size become small integers."""
  dense: dict[int, int] = {}
  lines: list[_Line] = []
  for number, fields in json_lines(path, on_bad=on_bad):
    where = f"{path.name}, line {number}"
    try:
      _check(where, fields)
      time = fields.get("timestamp")
      if lines and (time is None) != (lines[0].time is None):
        raise ValueError(
          f"{where}: a timestamp must stand in all lines or in none, unlike in"
          f" line {lines[0].number}"
        )
    except ValueError as error:
      if on_bad is None:
        raise
      on_bad(error)
      continue
    ids = [dense.setdefault(value, len(dense)) for value in fields["hash_ids"]]
    lines.append(_Line(number, fields["input_length"], ids, time))
  return lines


def _without_misfits(
  name: str,
  lines: list[_Line],
  block: int,
  on_bad: Callable[[ValueError], None] | None,
) -> list[_Line]:
  """The lines whose ids are those of blocks of this size.

  Raises:
    ValueError: a line has other ids and may not be skipped, because `on_bad` is
      None, or because more lines fit another size: that is no damage.
  """
  sizes = [PromptSize(line.length, len(line.ids)) for line in lines]
  bad = [i for i, size in enumerate(sizes) if not size.fit(block)]
  better = better_block(sizes, block) if bad else None
  for index in bad:
    where = f"{name}, line {lines[index].number}"
    told = f"{where}: {misfit(sizes[index], block)}"
    if better is not None:
      raise ValueError(f"{told}; {better}")
    if on_bad is None:
      raise ValueError(told)
    on_bad(ValueError(told))
  return [line for line, size in zip(lines, sizes) if size.fit(block)]


def _unit(times: Sequence[int | float]) -> tuple[str, str | None]:
  """The unit of timestamps that nobody has told, and what must be said of it.

  Mooncake counts whole milliseconds, the Bailian traces seconds with three
  digits; whole seconds show only by the number of requests in one.
  """
  fraction = next((time for time in times if time != int(time)), None)
  if fraction is not None:
    return "s", (
      f"its timestamps are no whole numbers ({fraction}, say) and are read as"
      " seconds, unless time_unit=ms is given"
    )
  span = (max(times) - min(times)) / TIME_UNITS["ms"]
  if len(times) >= _FEW and len(times) > _FAST * span > 0:
    return "ms", (
      f"its timestamps, read as milliseconds, are of {len(times)} requests in"
      f" {span:.3g} seconds, unless time_unit=s is given"
    )
  return "ms", None


def _in_time(
  lines: Sequence[_Line], time_unit: str | None, notes: list[str]
) -> list[tuple[float, int]]:
  """Seconds after the first request, and positions in `lines`, in that order.

  Lines of one time keep their order in the file. What a reader must know of the
  times is added to `notes`.
  """
  times = [line.time or 0 for line in lines]
  unit, note = (time_unit, None) if time_unit else _unit(times)
  late = sum(b < a for a, b in itertools.pairwise(times))
  if note:
    notes.append(note)
  if late:
    notes.append(
      f"{late} of its {len(times)} requests are earlier than the line before,"
      " and it is replayed in order of time"
    )
  order = sorted(range(len(lines)), key=times.__getitem__)
  start = times[order[0]]
  return [((times[i] - start) / TIME_UNITS[unit], i) for i in order]


def load_mooncake(
  path: str | Path,
  block_size: int | None = None,
  *,
  time_unit: str | None = None,
  skip_bad_lines: bool = False,
) -> Trace:
  """Reads a Mooncake trace, in order of time.

  Args:
    path: .jsonl, .jsonl.gz or .jsonl.xz.
    block_size: tokens per block, see `block_size_of`.
    time_unit: "ms" or "s", the unit of `timestamp`; None takes milliseconds,
      but seconds, with a warning, where timestamps are no whole numbers.
    skip_bad_lines: leave out the lines that hold no request of the right form
      instead of refusing the file; a warning tells how many there were. A file
      whose lines all fit another block size is refused nonetheless.

  Returns:
    A trace with one id per whole block; all requests are of one group.

  Raises:
    OSError: the file cannot be read; there is none, say, or it is a folder.
    ValueError: a malformed or truncated file (with the line number), an empty
      one, a contradictory or wrong block size (with the size that would fit),
      or an unknown unit.

  Warns:
    TraceWarning: seconds were assumed, the lines are not in order of time, or
      lines were skipped.

  >>> import tempfile
  >>> line = '{"timestamp": 0, "input_length": 40, "hash_ids": [7, 8, 9]}'
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "short_blksz_16.jsonl")
  ...   _ = path.write_text(line)
  ...   trace = load_mooncake(path)
  >>> trace.block, trace.requests[0].ids.tolist()
  (16, [0, 1])
  """
  if not isinstance(time_unit, str | None) or time_unit not in (
    None,
    *TIME_UNITS,
  ):
    raise ValueError(
      f"time_unit must be one of {', '.join(TIME_UNITS)}, got {time_unit!r}"
    )
  check_flag("skip_bad_lines", skip_bad_lines)
  path, notes = path_of("path", path), []
  block = block_size_of(path, block_size)
  skipped = _Skipped()
  on_bad = skipped.add if skip_bad_lines else None
  lines = _without_misfits(path.name, _read(path, on_bad), block, on_bad)
  if not lines:
    reason = f": {skipped.first}" if skipped.count else ""
    raise ValueError(f"{path.name} has no requests{reason}")
  if skipped.count:
    notes.append(
      f"{skipped.count} of its {skipped.count + len(lines)} lines are skipped,"
      f" the first of them because {skipped.first}"
    )
  ordered = _in_time(lines, time_unit, notes)
  for note in notes:
    warnings.warn(f"{path.name}: {note}", TraceWarning, stacklevel=2)
  requests = tuple(
    _request(index, lines[index], block, arrival) for arrival, index in ordered
  )
  return Trace(path.name, requests, block, skipped_lines=skipped.count)


def _request(
  index: int, line: _Line, block: int, arrival: float
) -> TraceRequest:
  """A request of hashed blocks; its partial block has no id."""
  ids = np.array(line.ids[: line.length // block], np.int32)
  return TraceRequest(ids, line.length, index=index, arrival=arrival)
