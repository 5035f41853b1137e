import json
import lzma

import numpy as np
import pytest

from sparse_prefix_jax.workloads import TraceWarning, load_mooncake


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


@pytest.mark.parametrize(
  "bad, sentence",
  [
    (line(0, 0, []), "line 2: input_length must be a positive integer, got 0"),
    ('{"prompt": [1, 2]}', "line 2 has no input_length; a line of a trace has"),
    ('{"input_length": 3}', "line 2 has no hash_ids; .* `token_trace`"),
    (line(0, 600, ["a"]), "line 2: hash_ids must be a list of integers"),
    (line(0, 600, 3), "line 2: hash_ids must be a list of integers"),
    (line(0, 1100, [1]), "line 2: 1100 tokens are 2 whole blocks of 512, but"),
    (
      line("now", 10, []),
      "timestamp must be a number within .* 'now'",
    ),
    (line(0, 10, [])[:-4], "line 2 is not JSON"),
    (line(10**400, 10, []), "line 2: timestamp must be a number within"),
    (line(float("nan"), 10, []), "line 2: NaN is no JSON number"),
    (line(0, 10, []).replace(" 0,", " 1e999,"), "timestamp .* got inf"),
    (line(0, 10**4000, [1]), "whole blocks of 512, but hash_ids has 1"),
    (line(0, 600, [1, 2, 3]), "line 2: 600 tokens are at most 2 blocks of 512"),
    (line(None, 10, []), "line 2: timestamp must be a number within .* None"),
    (
      '{"input_length": 10, "hash_ids": []}',
      "line 2: a timestamp must stand in all lines or in none, unlike in",
    ),
    ("\xff", "line 2 is not UTF-8 text"),
    (line(0, -(10**4000), [1]), "input_length must be a positive integer"),
  ],
)
def test_malformed_lines_are_named(tmp_path, bad, sentence):
  path = tmp_path / "t.jsonl"
  path.write_text(line(0, 10, []) + "\n" + bad + "\n", encoding="latin-1")
  with pytest.raises(ValueError, match=sentence) as refusal:
    load_mooncake(path)
  assert len(str(refusal.value)) < 200


def bailian(chat, time, length, first=0):
  """A line of the public Bailian traces: seconds, blocks of 16."""
  ids = [*range(first, first + -(-length // 16))]
  return json.dumps(
    {
      "chat_id": chat,
      "parent_chat_id": -1,
      "timestamp": time,
      "input_length": length,
      "output_length": 3,
      "type": "text",
      "turn": 1,
      "hash_ids": ids,
    }
  )


BAILIAN = [bailian(1, 0.25, 521), bailian(2, 61.114, 400), bailian(3, 62.5, 7)]


def write(path, lines):
  path.write_text("\n".join(lines) + "\n")
  return path


def test_bailian_traces_are_read_as_they_are(tmp_path):
  path = write(tmp_path / "qwen_traceA_blksz_16.jsonl", BAILIAN)
  sentence = (
    "^qwen_traceA_blksz_16.jsonl: its timestamps are no whole numbers"
    r" \(0.25, say\) and are read as seconds, unless time_unit=ms is given$"
  )
  with pytest.warns(TraceWarning, match=sentence):
    trace = load_mooncake(path)
  assert trace.block == 16
  assert [len(r.ids) for r in trace.requests] == [32, 25, 0]
  assert [r.arrival for r in trace.requests] == [0, 60.864, 62.25]
  assert load_mooncake(path, time_unit="s").requests[1].arrival == 60.864
  told = load_mooncake(path, time_unit="ms")
  assert told.requests[2].arrival == pytest.approx(0.06225)


@pytest.mark.parametrize("skip_bad_lines", [False, True])
def test_a_wrong_block_size_is_refused_with_the_right_one(
  tmp_path, skip_bad_lines
):
  path = write(tmp_path / "bailian.jsonl", [*BAILIAN, bailian(4, 63, 1600)])
  sentence = (
    r"^bailian.jsonl, line 1: 521 tokens are at most 2 blocks of 512, but"
    " hash_ids has 33; block_size=16 would fit all 4 lines$"
  )
  with pytest.raises(ValueError, match=sentence):
    load_mooncake(path, skip_bad_lines=skip_bad_lines)
  with pytest.warns(TraceWarning, match="read as seconds"):
    assert len(load_mooncake(path, 16)) == 4
  many = write(tmp_path / "m.b16.jsonl", [line(0, 5000, list(range(10)))] * 3)
  with pytest.raises(
    ValueError, match=r"312 whole .* 10; block_size=512 would"
  ):
    load_mooncake(many, skip_bad_lines=skip_bad_lines)


def test_whole_seconds_show_by_their_rate(tmp_path):
  lines = [line(second // 4, 10, []) for second in range(400)]
  path = write(tmp_path / "t.jsonl", lines)
  sentence = r"^t.jsonl: its timestamps, read as milliseconds, are of 400 req.*"
  with pytest.warns(TraceWarning, match=sentence + r"in 0.099 seconds, unless"):
    load_mooncake(path)
  assert load_mooncake(path, time_unit="s").requests[-1].arrival == 99
  # Without times there is nothing to be told, nor for a burst.
  write(path, ['{"input_length": 10, "hash_ids": []}'] * 400)
  assert {r.arrival for r in load_mooncake(path).requests} == {0}
  write(path, lines[:50])
  assert len(load_mooncake(path)) == 50


def test_lines_out_of_order_are_replayed_in_order_of_time(tmp_path):
  times = [3000, 1000, 1000, 2000]
  lines = [line(time, 10, []) for time in times]
  path = write(tmp_path / "t.jsonl", lines)
  sentence = (
    r"^t.jsonl: 1 of its 4 requests are earlier than the line before, and it is"
    " replayed in order of time$"
  )
  with pytest.warns(TraceWarning, match=sentence):
    trace = load_mooncake(path)
  assert [r.index for r in trace.requests] == [1, 2, 3, 0]
  assert [r.arrival for r in trace.requests] == [0, 0, 1, 2]


def test_bad_lines_may_be_skipped_and_are_counted(tmp_path):
  good = line(0, 1100, [1, 2, 3])
  bad = ["no JSON", "[1]", line(0, 0, []), line("now", 10, [])]
  bad += [line(0, 1100, [1]), '{"input_length": 10, "hash_ids": []}']
  path = write(tmp_path / "t.jsonl", [good, *bad, "", good])
  sentence = (
    "^t.jsonl: 6 of its 8 lines are skipped, the first of them because t.jsonl,"
    " line 2 is not JSON: Expecting value$"
  )
  with pytest.warns(TraceWarning, match=sentence):
    trace = load_mooncake(path, skip_bad_lines=True)
  assert len(trace) == 2 and trace.skipped_lines == 6
  assert load_mooncake(write(path, [good])).skipped_lines == 0
  write(path, bad[:2])
  with pytest.raises(ValueError, match=r"has no requests: t.jsonl, line 1 is"):
    load_mooncake(path, skip_bad_lines=True)


@pytest.mark.parametrize("unit", ["", "seconds", "us"])
def test_unknown_units_are_refused(tmp_path, unit):
  with pytest.raises(ValueError, match="time_unit must be one of ms, s, got"):
    load_mooncake(tmp_path / "t.jsonl", time_unit=unit)


def test_empty_files_are_refused(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_text("\n")
  with pytest.raises(ValueError, match=r"t.jsonl has no requests"):
    load_mooncake(path)
