"""Text files of one JSON object per line, plain or compressed."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def _open(path: Path) -> io.TextIOWrapper:
  """Opens a file as UTF-8 text, by its last suffix."""
  opener = _OPENERS.get(path.suffix)
  stream = path.open("rb") if opener is None else opener(path, "rb")
  return io.TextIOWrapper(stream, encoding="utf-8")


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
  """Line numbers from 1, and lines that are not blank.

  Args:
    path: a text file; `.gz` and `.xz` are decompressed while it is read.

  Yields:
    Pairs of number and text, stripped of white space at both ends.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is cut off, no UTF-8, or not compressed as named.
  """
  path, number = Path(path), 0
  try:
    with _open(path) as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          yield number, line.strip()
  except FileNotFoundError:
    raise
  except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{path.name} is truncated or damaged after line {number}: {error}"
    ) from None
  except UnicodeDecodeError:
    raise ValueError(
      f"{path.name} is not UTF-8 text after line {number}"
    ) from None


def _refuse_constant(name: str) -> NoReturn:
  """Raises ValueError for NaN and Infinity, which JSON does not have."""
  raise ValueError(f"{name} is no JSON number")


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Line numbers from 1, and the JSON object of each line that is not blank.

  Args:
    path: JSON lines, plain or compressed.

  Yields:
    Pairs of number and object.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is no JSON object, with its number; or as
      `numbered_lines`.
  """
  name = Path(path).name
  for number, line in numbered_lines(path):
    try:
      value = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
      raise ValueError(
        f"{name}, line {number} is not JSON: {error.msg}"
      ) from None
    except ValueError as error:  # a constant, or an integer too long to read
      reason = str(error).partition(";")[0]
      raise ValueError(f"{name}, line {number}: {reason}") from None
    except RecursionError:
      raise ValueError(
        f"{name}, line {number} is nested too deeply to be read"
      ) from None
    if not isinstance(value, dict):
      raise ValueError(
        f"{name}, line {number} must be a JSON object, got"
        f" {type(value).__name__}"
      )
    yield number, value
