import io
import random as rng

import numpy as np
import pytest

from sparse_prefix_jax.workloads import (
  Trace,
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
    ({"tail": [1, 2, 3, 7, 8, 9, np.nan]}, "tail must be .* got float64"),
    ({"group": [0.0, 0.0, 5.0, 0.0]}, "group must be a vector of integers"),
    ({"n_answer": [0, 1]}, "n_answer must have one value for each of 4 rows"),
    ({"n_answer": [0, 0, 2, 0]}, "n_answer of row 2 must .* its 2 tokens, got"),
    (
      {"n_answer": [0, -1, 0, 0]},
      "n_answer of row 1 must .* below its 4 .* -1",
    ),
    (
      {"n_answer": [0, 0.5, 1, 0]},
      "n_answer must be a vector of integers, got",
    ),
    (
      {k: np.zeros(0, int) for k in FIELDS},
      "has no requests",
    ),
  ],
)
def test_malformed_files_are_refused(tmp_path, changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    load_token_file(write(tmp_path / "bad.npz", **changes))


def test_answers_are_read_and_written(tmp_path):
  trace = load_token_file(write(tmp_path / "a.npz", n_answer=[1, 0, 1, 2]))
  assert [r.answer for r in trace.requests] == [1, 0, 1, 2]
  prompts = [r.prompt.tolist() for r in trace.requests]
  assert prompts == [[1, 2], [1, 2, 7, 8], [9], [1]]
  save_token_file(tmp_path / "b.npz", trace)
  again = load_token_file(tmp_path / "b.npz")
  assert [r.answer for r in again.requests] == [1, 0, 1, 2]
  # Without answers a file stays one that older readers know.
  save_token_file(
    tmp_path / "c.npz", load_token_file(write(tmp_path / "d.npz"))
  )
  with np.load(tmp_path / "c.npz") as archive:
    assert "n_answer" not in archive


def test_rows_that_would_not_fit_are_refused_before_they_are_made(tmp_path):
  """A tail of one id may stand for any number of rows of any length."""
  shared = {
    "group": np.zeros(1001, int),
    "n_tokens": np.full(1001, 1000),
    "common_with_prev": np.array([0] + [1000] * 1000),
    "tail": np.zeros(1000, int),
  }
  path = write(tmp_path / "a.npz", **shared)
  with pytest.raises(ValueError, match="declares rows of 4004000 bytes, more"):
    load_token_file(path, max_bytes=4_003_999)
  assert len(load_token_file(path, max_bytes=4_004_000)) == 1001


def mutated(random, content):
  """Content with some bits, bytes or pieces changed, taken or put in."""
  content, at = bytearray(content), random.randrange(len(content))
  piece = random.randbytes(random.randrange(1, 40))
  match random.randrange(6):
    case 0:
      content[at] = random.randrange(256)
    case 1:
      for _ in range(random.randrange(1, 9)):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    case 2:
      del content[at:]
    case 3:
      del content[at : at + len(piece)]
    case 4:
      content[at:at] = piece
    case 5:
      content[at : at + 4] = random.choice([bytes(4), b"\xff" * 4])
  return bytes(content)


def test_damaged_files_load_or_end_in_one_sentence(tmp_path):
  arrays = {k: np.array(v) for k, v in FIELDS.items()} | {
    "n_answer": np.array([1, 0, 1, 2])
  }
  wholes, random = [], rng.Random(0)
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "whole.npz", allow_pickle=False, **arrays)
    wholes.append((tmp_path / "whole.npz").read_bytes())
  path, loaded = tmp_path / "damaged.npz", 0
  for _ in range(400):
    path.write_bytes(mutated(random, random.choice(wholes)))
    try:
      loaded += len(load_token_file(path)) > 0
    except (ValueError, OSError) as error:
      text = str(error)
      assert "damaged.npz" in text and "\n" not in text and len(text) < 300
  assert 0 < loaded < 100


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
  with pytest.raises(FileNotFoundError, match=r"missing.npz"):
    load_token_file(tmp_path / "missing.npz")
  (tmp_path / "folder.npz").mkdir()
  with pytest.raises(IsADirectoryError, match=r"folder.npz"):
    load_token_file(tmp_path / "folder.npz")


def test_files_get_exactly_the_name_that_was_asked_for(tmp_path):
  trace = token_trace("t", [[1]], [0])
  save_token_file(tmp_path / "tokens", trace)
  assert [file.name for file in tmp_path.iterdir()] == ["tokens"]
  with pytest.raises(ValueError, match="trace must hold requests, x has none"):
    save_token_file(tmp_path / "none", Trace("x", ()))
  assert not (tmp_path / "none").exists()


def test_blocks_are_not_saved_as_tokens(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_text('{"input_length": 512, "hash_ids": [1]}\n')
  with pytest.raises(ValueError, match="must hold token ids, got blocks"):
    save_token_file(tmp_path / "t.npz", load_mooncake(path))
