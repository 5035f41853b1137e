"""Whether a result can be written, asked before the work that makes it."""

import os
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
  """Raises OSError before long work if a file could not be written.

  Permissions alone do not tell: who runs as root has all of them, and a disk
  may be mounted read-only. So a nameless file is written for a moment, to the
  nearest folder that exists; the others are made when there is a report.

  Args:
    path: the file that is to be written.

  Raises:
    OSError: it cannot be.
  """
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
