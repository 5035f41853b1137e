import gzip
import lzma

import pytest

from sparse_prefix_jax.workloads.lines import json_lines, numbered_lines

TEXT = '{"a": 1}\n\n{"a": 2}\n'


@pytest.mark.parametrize(
  "suffix, pack", [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
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


@pytest.mark.parametrize(
  "suffix, pack", [(".gz", gzip.compress), (".xz", lzma.compress)]
)
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
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(ValueError, match="is not UTF-8 text"):
    list(numbered_lines(path))
  with pytest.raises(FileNotFoundError):
    list(numbered_lines(tmp_path / "missing"))
