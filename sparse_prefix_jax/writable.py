"""Files of results: whether one can be written, and how it is."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def check_writable(path: Path, *others: str | Path) -> None:
  """Raises OSError before long work if a file could not be written.

  Permissions alone do not tell: who runs as root has all of them, and a disk
  may be mounted read-only. So a nameless file is written for a moment, to the
  nearest folder that exists; the others are made when there is a report.

  Args:
    path: the file that is to be written.
    others: files that are read, or written too: it must be none of them.

  Raises:
    OSError: it cannot be.
  """
  for other in others:
    if _are_same(path, Path(other)):
      raise OSError(f"cannot write {path} over {other}, which is the same file")
  if path.is_dir():
    raise OSError(f"cannot write {path}, which is a folder")
  if path.exists():
    if not os.access(path, os.W_OK):
      raise OSError(f"cannot write {path}: Permission denied")
    return
  folder = next(parent for parent in path.absolute().parents if parent.exists())
  try:
    with tempfile.TemporaryFile(dir=folder):
      return
  except OSError as error:
    raise OSError(f"cannot write {path}: {error.strerror}") from None


def _are_same(one: Path, other: Path) -> bool:
  """Whether two paths name one file, which need not exist."""
  if one.exists() and other.exists():
    return one.samefile(other)
  return one.resolve() == other.resolve()


def writable_folder(folder: Path) -> Path:
  """Makes a folder and writes to it, for a moment.

  Args:
    folder: what `out` is.

  Returns:
    The folder.

  Raises:
    OSError: one sentence that names the folder and the reason.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      return folder
  except OSError as error:
    raise OSError(
      f"out is {str(folder)!r}, where nothing can be written "
      f"({error.strerror}); it must be a folder that can be written to."
    ) from None


def write_json_file(path: str | Path, content: Any, *, indent: int = 2) -> None:
  """Writes a result as JSON, one line break at its end.

  Args:
    path: File to write; missing folders are made.
    content: What `json.dumps` takes.
    indent: Spaces of each level; 0 for one line.

  Raises:
    OSError: The file cannot be written; the error names it.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(content, indent=indent or None) + "\n"
  try:
    path.write_text(text, encoding="utf-8")
  except OSError as error:
    # A full disk is noticed at the write, which does not know the name.
    raise OSError(error.errno, error.strerror, str(path)) from None
