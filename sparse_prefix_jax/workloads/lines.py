"""Text files of one JSON object per line, plain or compressed."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

LONGEST_LINE = 1 << 24
"""Bytes that a line may have unless a caller says otherwise: 16 MiB, a hundred
times the line of a prompt of a million tokens in blocks of 16."""

_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, MemoryError)


def _open(path: Path) -> io.BufferedIOBase:
  """Opens a file for reading; its last suffix says how it is compressed."""
  if path.suffix == ".gz":
    return gzip.GzipFile(path, "rb")
  if path.suffix == ".xz":
    return lzma.LZMAFile(path, "rb")
  return path.open("rb")


def _raw_lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
  """Numbers from 1, and lines of at most `longest` bytes, as they stand.

  A file is decompressed piece by piece, so that a line of gigabytes, which may
  take a thousandth of that on disk, never stands in memory.
  """
  number = 0
  try:
    with _open(path) as file:
      while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
          raise ValueError(
            f"{path.name}, line {number} is longer than {longest} bytes"
          )
        yield number, line
  except _DAMAGED as error:
    raise ValueError(
      f"{path.name} is truncated or damaged after line {number}: {error}"
    ) from None
  except OSError as error:
    if error.filename is not None:
      raise
    # What goes wrong while reading does not know the name of the file.
    raise OSError(error.errno, error.strerror, str(path)) from None


def _text(where: str, line: bytes) -> str:
  """A line as text, without white space at both ends."""
  try:
    return line.decode("utf-8").strip()
  except UnicodeDecodeError:
    raise ValueError(f"{where} is not UTF-8 text") from None


def numbered_lines(
  path: str | Path, *, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, str]]:
  r"""Line numbers from 1, and lines that are not blank.

  Args:
    path: a text file; `.gz` and `.xz` are decompressed while it is read.
    longest: bytes that a line may have, decompressed.

  Yields:
    Pairs of number and text, stripped of white space at both ends.

  Raises:
    OSError: the file cannot be read; there is none, say, or it is a folder.
    ValueError: the file is cut off, or not compressed as named; or a line is
      no UTF-8, or too long, with its number.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "queries.txt")
  ...   _ = path.write_text("Who?\n\nWhy?\n")
  ...   list(numbered_lines(path))
  [(1, 'Who?'), (3, 'Why?')]
  """
  path = Path(path)
  for number, line in _raw_lines(path, longest):
    if text := _text(f"{path.name}, line {number}", line):
      yield number, text


def _refuse_constant(name: str) -> NoReturn:
  """Raises ValueError for NaN and Infinity, which JSON does not have."""
  raise ValueError(f"{name} is no JSON number")


def _object(where: str, line: bytes) -> dict[str, Any] | None:
  """The JSON object of a line, or None for a blank line."""
  text = _text(where, line)
  if not text:
    return None
  try:
    value = json.loads(text, parse_constant=_refuse_constant)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where} is not JSON: {error.msg}") from None
  except ValueError as error:  # a constant, or an integer too long to read
    reason = str(error).partition(";")[0]
    raise ValueError(f"{where}: {reason}") from None
  except RecursionError:
    raise ValueError(f"{where} is nested too deeply to be read") from None
  if not isinstance(value, dict):
    raise ValueError(
      f"{where} must be a JSON object, got {type(value).__name__}"
    )
  return value


def json_lines(
  path: str | Path,
  *,
  longest: int = LONGEST_LINE,
  on_bad: Callable[[ValueError], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
  r"""Line numbers from 1, and the JSON object of each line that is not blank.

  Args:
    path: JSON lines, plain or compressed.
    longest: bytes that a line may have, decompressed.
    on_bad: called with the error of a line that holds no JSON object, which is
      then skipped; None raises the error.

  Yields:
    Pairs of number and object.

  Raises:
    OSError: the file cannot be read.
    ValueError: a line is no JSON object, with its number; or as
      `numbered_lines`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "trace.jsonl")
  ...   _ = path.write_text('{"a": 1}\nnot JSON\n')
  ...   list(json_lines(path, on_bad=print))
  trace.jsonl, line 2 is not JSON: Expecting value
  [(1, {'a': 1})]
  """
  path = Path(path)
  for number, line in _raw_lines(path, longest):
    try:
      value = _object(f"{path.name}, line {number}", line)
    except ValueError as error:
      if on_bad is None:
        raise
      on_bad(error)
      continue
    if value is not None:
      yield number, value
