import json
import lzma

import numpy as np
import pytest

from sparse_prefix_jax.workloads import load_mooncake
from sparse_prefix_jax.workloads.mooncake import block_size_of


def line(time, length, hashes):
  return json.dumps(
    {
      "timestamp": time,
      "input_length": length,
      "output_length": 5,
      "hash_ids": hashes,
    }
  )


def test_reads_blocks_and_times(tmp_path):
  path = tmp_path / "t.b16.jsonl.xz"
  text = "\n".join([line(500, 40, [2**60, 7, 9]), line(1500, 16, [2**60])])
  path.write_bytes(lzma.compress(text.encode()))
  trace = load_mooncake(path)
  first, second = trace.requests
  assert trace.block == 16 and trace.longest == 40
  # The trailing partial block has no id, and ids of any size become int32.
  assert first.ids.tolist() == [0, 1] and second.ids.tolist() == [0]
  assert first.ids.dtype == np.int32
  assert (first.arrival, second.arrival) == (0.0, 1.0)
  assert (first.length, second.length) == (40, 16)


def test_block_size():
  assert block_size_of("x.jsonl") == 512
  assert block_size_of("x.jsonl", 64) == 64
  assert block_size_of("a/x.b32.jsonl.gz", 32) == 32
  with pytest.raises(
    ValueError, match=r"block_size=64 contradicts x.b32.jsonl"
  ):
    block_size_of("x.b32.jsonl", 64)
  with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
    block_size_of("x.jsonl", 0)
  with pytest.raises(ValueError, match="names blocks of 0 tokens"):
    block_size_of("x.b0.jsonl")


@pytest.mark.parametrize(
  "bad, sentence",
  [
    (line(0, 0, []), "line 2: input_length must be a positive integer, got 0"),
    (line(0, 600, ["a"]), "line 2: hash_ids must be a list of integers"),
    (line(0, 600, 3), "line 2: hash_ids must be a list of integers"),
    (line(0, 1100, [1]), "line 2: 1100 tokens are 2 whole blocks of 512, but"),
    (
      line("now", 10, []),
      "timestamp must be a number of milliseconds .* 'now'",
    ),
    (line(0, 10, [])[:-4], "line 2 is not JSON"),
    (line(10**400, 10, []), "line 2: timestamp must be a number of milli"),
    (line(float("nan"), 10, []), "line 2: NaN is no JSON number"),
    (line(0, 10, []).replace(" 0,", " 1e999,"), "timestamp .* got inf"),
    (line(0, 10**4000, [1]), "whole blocks of 512, but hash_ids has 1"),
    (line(0, -(10**4000), [1]), "input_length must be a positive integer"),
  ],
)
def test_malformed_lines_are_named(tmp_path, bad, sentence):
  path = tmp_path / "t.jsonl"
  path.write_text(line(0, 10, []) + "\n" + bad + "\n")
  with pytest.raises(ValueError, match=sentence) as refusal:
    load_mooncake(path)
  assert len(str(refusal.value)) < 200


def test_empty_files_are_refused(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_text("\n")
  with pytest.raises(ValueError, match=r"t.jsonl has no requests"):
    load_mooncake(path)
