"""NumPy's files, read without trust in what they declare."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from sparse_prefix_jax.workloads.arrays import parse_npy, read_vectors


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def header(text, version=1, numbers=b""):
  """A file with any header at all."""
  length = struct.pack("<H" if version == 1 else "<I", len(text))
  return b"\x93NUMPY" + bytes((version, 0)) + length + text.encode() + numbers


@pytest.mark.parametrize(
  "array",
  [
    np.arange(5),
    np.zeros(0, np.uint8),
    np.array(3.5),
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array([1, 2], ">i4"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.ones(2, np.longdouble),
    np.array([1, 2], "m8[s]"),
    np.array(["a", "bc"]),
  ],
  ids=str,
)
def test_reads_what_numpy_writes(array):
  read = parse_npy(npy(array))
  assert read.dtype == array.dtype
  np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_reads_every_version(version):
  file = io.BytesIO()
  np.lib.format.write_array(file, np.arange(3), version=version)
  assert parse_npy(file.getvalue()).tolist() == [0, 1, 2]


FIVE = "{'descr': '<i8', 'fortran_order': False, 'shape': (5,), }\n"


@pytest.mark.parametrize(
  "content, sentence",
  [
    (b"", "does not begin as a NumPy array does"),
    (b"PK\x03\x04garbage", "does not begin as a NumPy array does"),
    (b"\x93NUMPY", "does not begin as a NumPy array does"),
    (header(FIVE, version=4), "does not begin as a NumPy array does"),
    (b"\x93NUMPY\x01", "ends within its header"),
    (b"\x93NUMPY\x01\x00\x01", "ends within its header"),
    (header(FIVE)[:-9], "its header is not that of an array of numbers"),
    (header(FIVE), "declares 40 bytes, it holds 0"),
    (header(FIVE, 2, bytes(41)), "declares 40 bytes, it holds 41"),
    (header(FIVE.replace("5", "9" * 18)), "declares 7999999999999999992 bytes"),
    (header(FIVE.replace("<i8", "<i3")), "its header names no dtype: <i3"),
    (header(FIVE.replace("<i8", "<U0")), "declares 0 bytes, it holds 0"),
    (header(FIVE.replace("<i8", "<m8[x]")), "its header names no dtype"),
    (header(FIVE.replace("<i8", "|O")), "not that of an array of numbers"),
    (header(FIVE.replace("'<i8'", "[('a', '<i8')]")), "not that of an array"),
    (header(FIVE.replace("(5,)", "(-5,)")), "not that of an array of numbers"),
    (header(FIVE.replace("False", "exit()")), "not that of an array"),
    (header("(" * 60_000), "its header is not that of an array of numbers"),
    (header("{" + "'\\q'"), "its header is not that of an array of numbers"),
  ],
)
def test_other_contents_are_refused(content, sentence):
  with pytest.raises(ValueError, match=sentence):
    parse_npy(content)


def read(path, **options):
  return read_vectors(path, ("a",), ("b",), what="list", **options)


def test_reads_vectors_and_optional_ones(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, a=np.array([1, 2], np.uint8), c=np.array([0.5]))
  fields = read(path)
  assert list(fields) == ["a"] and fields["a"].dtype == np.int64
  np.savez_compressed(path, a=np.array([1]), b=np.array([3]))
  assert read(path)["b"].tolist() == [3]


@pytest.mark.parametrize(
  "array, sentence",
  [
    (np.array([1.0]), "a must be a vector of integers, got float64"),
    (np.array([np.nan]), "a must be a vector of integers, got float64"),
    (np.array([[1]]), r"a must be a vector of integers, got int64 \(1, 1\)"),
    (np.array(1), r"a must be a vector of integers, got int64 \(\)"),
    (np.array([True]), "a must be a vector of integers, got bool"),
    (np.array([2**63], np.uint64), r"a must be below 2\*\*63, got 92233720368"),
  ],
)
def test_other_arrays_are_refused(tmp_path, array, sentence):
  np.savez(tmp_path / "x.npz", a=array)
  with pytest.raises(ValueError, match=rf"^x.npz: {sentence}"):
    read(tmp_path / "x.npz")


def test_objects_are_refused_and_never_unpickled(tmp_path):
  np.savez(tmp_path / "x.npz", a=np.array([print], object))
  with pytest.raises(ValueError, match=r"^x.npz: a is damaged: its header"):
    read(tmp_path / "x.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path, method):
  with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
    archive.writestr("a.npy", npy(np.arange(3)))
  with pytest.raises(ValueError, match=r"x.npz is no list .* nor deflated"):
    read(tmp_path / "x.npz")


def test_what_is_no_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"No such file.*x.npz"):
    read(tmp_path / "x.npz")
  (tmp_path / "x.npz").mkdir()
  with pytest.raises(IsADirectoryError, match=r"Is a directory.*x.npz"):
    read(tmp_path / "x.npz")


def peak_of(path, sentence, **options):
  """Bytes that a refusal took."""
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=sentence):
      read(path, **options)
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def bomb(path, size):
  """Writes zeros that take a thousandth of their size on disk; the array."""
  text = FIVE.replace("5", str(size // 8))
  content = header(text, 1, bytes(size))
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a.npy", content)
  assert path.stat().st_size < size // 900
  return content


def test_declared_sizes_are_refused_before_anything_is_read(tmp_path):
  path, size = tmp_path / "x.npz", 1 << 25
  declared = len(bomb(path, size))
  sentence = rf"x.npz declares {declared} bytes of arrays, more than max_bytes"
  assert peak_of(path, sentence, max_bytes=declared - 1) < 1 << 18
  assert len(read(path, max_bytes=declared)["a"]) == size // 8


def test_an_archive_that_declares_too_little_is_not_unpacked(tmp_path):
  """The directory says 1,000 bytes, the array that it is of 32 MiB."""
  path, size = tmp_path / "x.npz", 1 << 25
  content = bomb(path, size)
  packed, start = path.read_bytes(), len(content) - size
  for true, lie in (
    (len(content), 1000),
    (zlib.crc32(content), zlib.crc32(content[:1000])),
  ):
    packed = packed.replace(struct.pack("<I", true), struct.pack("<I", lie))
  path.write_bytes(packed)
  sentence = f"declares {size} bytes, it holds {1000 - start}"
  assert peak_of(path, sentence) < 1 << 18
