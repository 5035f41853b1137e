import io

import numpy as np
import pytest

from sparse_prefix_jax.workloads import (
  load_mooncake,
  load_token_file,
  save_token_file,
  token_trace,
)

FIELDS = {
  "group": [0, 0, 5, 0],
  "n_tokens": [3, 4, 2, 3],
  "common_with_prev": [0, 2, 0, 3],
  "tail": [1, 2, 3, 7, 8, 9, 9],
}


def write(path, **changes):
  arrays = {k: np.array(v) for k, v in (FIELDS | changes).items()}
  with path.open("wb") as file:
    np.savez(file, allow_pickle=False, **arrays)
  return path


def test_rows_are_put_together(tmp_path):
  trace = load_token_file(write(tmp_path / "a.npz"))
  rows = [r.ids.tolist() for r in trace.requests]
  assert rows == [[1, 2, 3], [1, 2, 7, 8], [9, 9], [1, 2, 7]]
  assert [r.group for r in trace.requests] == [0, 0, 5, 0]
  assert trace.name == "a.npz" and trace.block == 1


def test_round_trip(tmp_path):
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 2, rng.integers(1, 9)) for _ in range(30)]
  trace = token_trace("t", rows, rng.integers(0, 3, 30).tolist())
  save_token_file(tmp_path / "t.npz", trace)
  again = load_token_file(tmp_path / "t.npz")
  for before, after in zip(trace.requests, again.requests, strict=True):
    np.testing.assert_array_equal(before.ids, after.ids)
    assert before.group == after.group


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"tail": [1, 2, 3]}, "truncated: its rows need 7 ids in tail, it has 3"),
    ({"n_tokens": [3, 4, 2]}, "group, n_tokens and common_with_prev differ"),
    (
      {"common_with_prev": [0, 5, 0, 0]},
      "row 1 shares 5 of 4 tokens",
    ),
    (
      {"common_with_prev": [0, 2, 2, 1]},
      "row 2 shares 2 tokens with a previous row of 0",
    ),
    (
      {"tail": [1, 2, 3, 7, 2**31, 9, 9]},
      r"bad.npz: tail: token ids must be in \[0, 2\*\*31\), got 2147483648",
    ),
    ({"tail": [1, 2, 3, 7, -8, 9, 9]}, r"token ids must be in .* got -8"),
    (
      {"n_tokens": np.array([3, 4, 2, 2**63 + 3], np.uint64)},
      r"n_tokens must be below 2\*\*63, got 9223372036854775811",
    ),
    ({"tail": [[1.5]]}, "tail must be a vector of integers"),
    (
      {k: np.zeros(0, int) for k in FIELDS},
      "has no requests",
    ),
  ],
)
def test_malformed_files_are_refused(tmp_path, changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    load_token_file(write(tmp_path / "bad.npz", **changes))


def patched(content, marker, offset, value):
  """The archive with one byte of every header changed."""
  content, found = bytearray(content), content.find(marker)
  while found >= 0:
    content[found + offset] = value
    found = content.find(marker, found + 4)
  return bytes(content)


def damaged(folder, whole):
  """Writes archives whose directory is in order and whose content is not."""
  central, local = b"PK\x01\x02", b"PK\x03\x04"
  packed = io.BytesIO()
  arrays = {k: np.array(v) for k, v in FIELDS.items()}
  np.savez_compressed(packed, allow_pickle=False, **arrays)
  deflated = bytearray(packed.getvalue())
  start = deflated.find(b"group.npy") + 40
  deflated[start : start + 30] = bytes(b ^ 255 for b in deflated[start:][:30])
  array = io.BytesIO()
  np.save(array, np.arange(3))
  files = {
    "deflated": bytes(deflated),
    "encrypted": patched(patched(whole, central, 8, 1), local, 6, 1),
    "method": patched(whole, central, 10, 99),
    "array": array.getvalue(),
  }
  for name, content in files.items():
    (folder / f"{name}.npz").write_bytes(content)
  return tuple(files)


def test_other_files_are_refused(tmp_path):
  np.savez(tmp_path / "other.npz", group=np.zeros(1, int))
  (tmp_path / "text.npz").write_text("hello")
  (tmp_path / "empty.npz").write_text("")
  whole = write(tmp_path / "whole.npz").read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  for name in ("other", "text", "empty", "cut", *damaged(tmp_path, whole)):
    with pytest.raises(ValueError, match=f"{name}.npz is no token file"):
      load_token_file(tmp_path / f"{name}.npz")
  with pytest.raises(FileNotFoundError):
    load_token_file(tmp_path / "missing.npz")


def test_blocks_are_not_saved_as_tokens(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_text('{"input_length": 512, "hash_ids": [1]}\n')
  with pytest.raises(ValueError, match="must hold token ids, got blocks"):
    save_token_file(tmp_path / "t.npz", load_mooncake(path))
