"""NumPy's files (.npy, .npz), read without trust in what they declare.

`numpy.load` evaluates the header of an array as Python and allocates what it
declares before a byte is read, and damaged archives make it raise a dozen kinds
of errors, some without the name of the file. Here a file is refused in one
sentence, from its declared sizes, before its content is read.
"""

import contextlib
import lzma
import math
import re
import struct
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

MAX_BYTES = 1 << 30
"""Bytes of arrays that are read unless a caller says otherwise: 1 GiB, which is
a hundred times what a stream of a thousand long prompts takes."""

# What zipfile raises for damaged, encrypted or foreign archives. OSError is a
# seek to a negative offset: the file itself has been opened by then.
_DAMAGED = (
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  struct.error,
  ValueError,
  EOFError,
  KeyError,
  RuntimeError,
  OSError,
  OverflowError,
  MemoryError,
)

# Version 1 has a length of two bytes, versions 2 and 3 of four.
_PREFIXES = {1: struct.Struct("<H"), 2: struct.Struct("<I")}
_PREFIXES[3] = _PREFIXES[2]
_HEADER = re.compile(
  r"\{\s*'descr':\s*'([<>|=]?[biufcmMSUV][0-9]{1,9}(?:\[\w{1,10}\])?)',"
  r"\s*'fortran_order':\s*(True|False),"
  r"\s*'shape':\s*\(([0-9]{0,18}(?:, ?[0-9]{1,18}){0,31}),?\s*\),?\s*\}\s*"
)


def parse_npy(content: bytes | memoryview) -> np.ndarray:
  """The array of a .npy file: plain numbers or texts, no objects or records.

  Args:
    content: the whole file.

  Returns:
    An array that shares the memory of `content`.

  Raises:
    ValueError: the content is no such file, or does not hold exactly the bytes
      that its header declares.

  >>> import io
  >>> file = io.BytesIO()
  >>> np.save(file, np.array([3, 1, 4]))
  >>> parse_npy(file.getvalue()).tolist()
  [3, 1, 4]
  """
  dtype, order, shape, start = _header(bytes(content[: 1 << 16]))
  declared = math.prod(shape) * dtype.itemsize
  held = len(content) - start
  if not dtype.itemsize or declared != held:
    raise ValueError(f"its header declares {declared} bytes, it holds {held}")
  flat = np.frombuffer(content, dtype, offset=start)
  return flat.reshape(shape, order="F" if order == "True" else "C")


def _header(content: bytes) -> tuple[np.dtype, str, tuple[int, ...], int]:
  """Dtype, whether in Fortran's order, shape, and where the numbers begin."""
  length = _PREFIXES.get(content[6]) if len(content) > 6 else None
  if not content.startswith(b"\x93NUMPY") or length is None:
    raise ValueError("it does not begin as a NumPy array does")
  start = 8 + length.size
  if len(content) < start:
    raise ValueError("it ends within its header")
  end = start + length.unpack(content[8:start])[0]
  text = content[start:end].decode("latin-1")
  match = _HEADER.fullmatch(text) if len(text) == end - start else None
  if match is None:
    raise ValueError("its header is not that of an array of numbers")
  shape = tuple(int(size) for size in match[3].split(",") if size.strip())
  try:
    return np.dtype(match[1]), match[2], shape, end
  except (TypeError, ValueError):
    raise ValueError(f"its header names no dtype: {match[1]}") from None


@contextlib.contextmanager
def _told_as(sentence: str) -> Iterator[None]:
  """Turns whatever a damaged archive makes zipfile raise into a ValueError."""
  try:
    yield
  except _DAMAGED as error:
    # zipfile may print the rest of the file, where it expects a name.
    reason = textwrap.shorten(str(error), 100, placeholder=" ...")
    raise ValueError(f"{sentence}: {reason or type(error).__name__}") from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  """The content of a member: no byte more than the archive declares."""
  # zipfile bounds what it unpacks of these two methods only.
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f"{info.filename} is neither stored nor deflated")
  with archive.open(info) as stream:
    # Reading past the end makes zipfile compare the checksum.
    return stream.read(info.file_size + 1)


def read_vectors(
  path: Path,
  required: Sequence[str],
  optional: Sequence[str] = (),
  *,
  what: str,
  max_bytes: int = MAX_BYTES,
) -> dict[str, np.ndarray]:
  """Vectors of integers from an archive.

  Args:
    path: an .npz file, as `numpy.savez` and `numpy.savez_compressed` write it.
    required: names of arrays that the archive must hold.
    optional: names of arrays that it may hold.
    what: what a file of such arrays is called in the sentence of a refusal.
    max_bytes: bytes that the named arrays may declare in all, unpacked.

  Returns:
    The arrays by name, int64 [t] each; an optional one only if it is there.

  Raises:
    OSError: the file cannot be opened.
    ValueError: it is no archive, damaged or too large, an array is missing, no
      vector of integers, or has a value of 2**63 or more.
  """
  sentence = f"{path.name} is no {what} (.npz with {', '.join(required)})"
  with path.open("rb") as file, contextlib.ExitStack() as stack:
    with _told_as(sentence):
      archive = stack.enter_context(zipfile.ZipFile(file))
      held = {name.removesuffix(".npy") for name in archive.namelist()}
      names = [*required, *(name for name in optional if name in held)]
      members = {name: archive.getinfo(f"{name}.npy") for name in names}
    declared = sum(info.file_size for info in members.values())
    if declared > max_bytes:
      raise ValueError(
        f"{path.name} declares {declared} bytes of arrays, more than"
        f" max_bytes={max_bytes}"
      )
    with _told_as(sentence):
      contents = {n: _read(archive, info) for n, info in members.items()}
  return {n: _vector(path.name, n, raw) for n, raw in contents.items()}


def _vector(file: str, name: str, content: bytes) -> np.ndarray:
  """One array of an archive as int64 [t]; the names are for the message."""
  try:
    field = parse_npy(content)
  except ValueError as error:
    raise ValueError(f"{file}: {name} is damaged: {error}") from None
  if field.ndim != 1 or field.dtype.kind not in "iu":
    raise ValueError(
      f"{file}: {name} must be a vector of integers, got {field.dtype}"
      f" {field.shape}"
    )
  if field.dtype.kind == "u" and np.any(field > np.iinfo(np.int64).max):
    raise ValueError(f"{file}: {name} must be below 2**63, got {field.max()}")
  return field.astype(np.int64)
