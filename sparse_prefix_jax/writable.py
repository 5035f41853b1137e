"""Files of results: whether one can be written, and how it is."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
  import fcntl


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


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
  """Keeps a folder for one writer, until it is left or the process ends.

  The system locks the folder itself, so nothing is left of a process that was
  killed. Where it has no such locks (Windows, some network disks) nobody is
  kept out.

  Args:
    folder: What `out` is.

  Raises:
    OSError: Another writer has it.
  """
  if sys.platform == "win32":
    yield
    return
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    _lock(descriptor, folder)
    yield
  finally:
    os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
  """Locks a folder for as long as it is open.

  Raises:
    OSError: Another process has it.
  """
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise OSError(
      f"out is {str(folder)!r}, which another process writes to; wait until it "
      "ends, or take another folder."
    ) from None
  except OSError:
    return  # The disk has no locks.


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
  """Lets errors of a file name it.

  A full disk is noticed at the write, which does not know the name.

  Args:
    path: What is written.

  Raises:
    OSError: With the same number and reason, and the name.
  """
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
  """Opens a file beside its place, and renames it into it at the end.

  So what is there is the old file or the new one, never a part.

  Args:
    path: The file to write.

  Raises:
    OSError: It cannot be written, naming it; nothing of it is left.
  """
  beside = path.with_name(f".{path.name}.part")
  try:
    with naming(path), beside.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
      beside.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      beside.unlink(missing_ok=True)
    raise


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
  with naming(path):
    path.write_text(text, encoding="utf-8")
