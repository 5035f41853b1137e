import bz2
import errno
import gzip
import io
import lzma
import tracemalloc

import pytest

from sparse_prefix_jax.workloads import lines
from sparse_prefix_jax.workloads.lines import json_lines, numbered_lines

TEXT = '{"a": 1}\n\n{"a": 2}\n'
PACKED = [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]


@pytest.mark.parametrize("suffix, pack", PACKED)
def test_reads_plain_and_compressed(tmp_path, suffix, pack):
  path = tmp_path / f"t.jsonl{suffix}"
  path.write_bytes(pack(TEXT.encode()))
  assert list(json_lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]


def test_bad_lines_are_named(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_text('{"a": 1}\n{"a": \n')
  with pytest.raises(ValueError, match=r"t.jsonl, line 2 is not JSON"):
    list(json_lines(path))
  path.write_text("[1]\n")
  with pytest.raises(
    ValueError, match="line 1 must be a JSON object, got list"
  ):
    list(json_lines(path))


@pytest.mark.parametrize(
  "text, sentence",
  [
    ("[" * 100_000, "line 2 is nested too deeply"),
    ('{"a":' * 100_000, "line 2 is nested too deeply"),
    ('{"a": NaN}', "line 2: NaN is no JSON number"),
    ('{"a": [-Infinity]}', "line 2: -Infinity is no JSON number"),
    ('{"a": ' + "9" * 5000 + "}", "line 2: Exceeds the limit .* 5000 digits$"),
  ],
)
def test_values_that_python_cannot_hold(tmp_path, text, sentence):
  path = tmp_path / "t.jsonl"
  path.write_text('{"a": 1}\n' + text + "\n")
  with pytest.raises(ValueError, match=sentence):
    list(json_lines(path))


@pytest.mark.parametrize("suffix, pack", PACKED[1:])
def test_truncated_and_misnamed_archives(tmp_path, suffix, pack):
  packed = pack((TEXT * 500).encode())
  path = tmp_path / f"t.jsonl{suffix}"
  path.write_bytes(packed[: len(packed) - 12])
  with pytest.raises(ValueError, match="truncated or damaged after line"):
    list(numbered_lines(path))
  path.write_bytes(TEXT.encode())
  with pytest.raises(ValueError, match="truncated or damaged after line 0"):
    list(numbered_lines(path))


def test_what_is_no_text(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_bytes(b"{}\n\xff\xfe\x00\n")
  for read in (numbered_lines, json_lines):
    with pytest.raises(ValueError, match=r"t.jsonl, line 2 is not UTF-8 text"):
      list(read(path))
  path.write_bytes(bz2.compress(TEXT.encode()).replace(b"\n", b"\xff"))
  with pytest.raises(ValueError, match="line 1 is not UTF-8 text"):
    list(numbered_lines(path))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.xz"])
def test_what_is_no_file(tmp_path, name):
  with pytest.raises(FileNotFoundError, match=f"No such file .*{name}"):
    list(numbered_lines(tmp_path / name))
  (tmp_path / name).mkdir()
  with pytest.raises(IsADirectoryError, match=f"Is a directory.*{name}"):
    list(numbered_lines(tmp_path / name))


def test_a_failure_while_reading_names_the_file(tmp_path, monkeypatch):
  class Broken(io.BytesIO):
    def readline(self, size=-1, /):
      raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(lines, "_open", lambda path: Broken())
  with pytest.raises(OSError, match=r"Input/output error.*t.jsonl"):
    list(numbered_lines(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("suffix, pack", PACKED)
def test_lines_have_a_greatest_length(tmp_path, suffix, pack):
  path = tmp_path / f"t.txt{suffix}"
  path.write_bytes(pack(b"12345678\n1234567\n123456789\n"))
  assert len(list(numbered_lines(path, longest=10))) == 3
  with pytest.raises(ValueError, match="line 3 is longer than 9 bytes"):
    list(numbered_lines(path, longest=9))
  skipped = []
  with pytest.raises(ValueError, match="line 3 is longer than 9 bytes"):
    list(json_lines(path, longest=9, on_bad=skipped.append))


@pytest.mark.parametrize("suffix, pack", PACKED[1:])
def test_a_line_of_gigabytes_is_refused_before_it_is_read(
  tmp_path, suffix, pack
):
  path = tmp_path / f"t.jsonl{suffix}"
  path.write_bytes(pack(b" " * (1 << 26)))
  assert path.stat().st_size < 70_000
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match="line 1 is longer than 65536 bytes"):
      list(json_lines(path, longest=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 1 << 24  # the dictionary of xz is half of that


def test_bad_lines_may_be_skipped(tmp_path):
  path, skipped = tmp_path / "t.jsonl", []
  path.write_bytes(b'{"a": 1}\nno\n[2]\n\xff\n\n{"a": NaN}\n{"a": 3}\n')
  found = list(json_lines(path, on_bad=skipped.append))
  assert found == [(1, {"a": 1}), (7, {"a": 3})]
  assert [str(error).split("line ")[1][0] for error in skipped] == [*"2346"]
