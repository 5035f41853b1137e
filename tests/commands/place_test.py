"""The command `place`; bad input never gives a traceback."""

import json

import numpy as np
import pytest

from sparse_prefix_jax.commands import place
from tests.commands.refusal import refused


def test_place(command, tmp_path):
  path = tmp_path / "h.npy"
  np.save(path, np.array([0, 5, 0, 1, 9, 0]))
  status, out, _ = command("place", f"--histogram={path}", "--budget=2")
  content = json.loads(out)
  assert status == 0 and content["positions"] == [1, 4]
  assert content["expected_recompute"] == pytest.approx(2 / 15)
  _, out, _ = command(
    "place", f"--histogram={path}", "--budget=1", "--cost=quadratic:0.5"
  )
  assert json.loads(out)["positions"] == [4]


@pytest.mark.parametrize("name", ["optimal", "dp"])
@pytest.mark.parametrize("budget", [2**31, 10**20 - 1])
def test_budgets_beyond_the_depths(command, tmp_path, tokens, name, budget):
  path, report = tmp_path / "h.npy", tmp_path / "report.json"
  np.save(path, np.array([0, 5, 0, 1, 9, 0]))
  status, out, _ = command("place", f"--histogram={path}", f"--budget={budget}")
  assert status == 0 and json.loads(out)["positions"] == [1, 3, 4]
  status, _, err = command(
    "simulate",
    f"--requests={tokens}",
    "--capacity=sequences:9",
    f"--placement={name}",
    f"--budget={budget}",
    f"--report={report}",
  )
  assert status == 0, err
  assert json.loads(report.read_text())["budget"] == budget


@pytest.mark.parametrize("dtype", [">f8", ">i4", np.float16])
def test_place_reads_other_types(command, tmp_path, dtype):
  path = tmp_path / "h.npy"
  np.save(path, np.array([0, 5, 0, 1, 9, 0], dtype))
  _, out, _ = command("place", f"--histogram={path}", "--budget=2")
  assert json.loads(out)["positions"] == [1, 4]


@pytest.mark.parametrize(
  "weights, flags, sentence",
  [
    ([1.0, -1.0], ["--budget=1"], "weights must not be negative, got -1.0"),
    ([1.0, np.nan], ["--budget=1"], "weights must be finite, got nan"),
    ([0, 0], ["--budget=1"], "weights must not all be zero"),
    ([3], ["--budget=1"], "at least two depths, got shape (1,)"),
    (3, ["--budget=1"], "at least two depths, got shape ()"),
    ([1, 1], ["--budget=0.5"], "--budget of place must be whole, got 0.5"),
    ([1, 1], ["--budget=inf"], "budget=inf: inf is no finite number"),
    ([1, 1], ["--budget=-2"], "budget must not be negative, got -2"),
    ([1, 1], ["--budget=1", "--cost=cubic"], "--cost must be linear or quad"),
    ([1, 1], ["--budget=1", "--cost=quadratic:x"], "--cost must be linear or"),
    ([1, 1], ["--budget=1", "--cost=quadratic:-1"], "--cost must be linear or"),
    ([1, 1], ["--budget=1", "--cost=quadratic:1e300"], "ratio must keep the"),
    ([1, 1], ["--budget=1", "--cost=quadratic:nan"], "--cost must be linear"),
    (
      [1, 2j],
      ["--budget=1"],
      "weights must be real numbers of at most 64 bits",
    ),
    (np.ones(2, np.longdouble), ["--budget=1"], "weights must be real numbers"),
    (np.ones(2, "m8[s]"), ["--budget=1"], "weights must be real numbers"),
    ([0.0, 5e-324], ["--budget=1"], "weights must not all be below"),
    ([1, 1], [], "place needs --budget"),
  ],
)
def test_place_refuses(command, tmp_path, weights, flags, sentence):
  path = tmp_path / "h.npy"
  np.save(path, np.array(weights))
  assert sentence in refused(command("place", f"--histogram={path}", *flags))


def test_place_refuses_other_files(command, tmp_path, monkeypatch):
  text, several = tmp_path / "text.npy", tmp_path / "several.npy"
  text.write_text("1 2 3")
  with several.open("wb") as file:
    np.savez(file, a=np.ones(3))
  packed, huge = tmp_path / "packed.npy", tmp_path / "huge.npy"
  packed.write_bytes(b"PK\x03\x04garbage")
  with huge.open("wb") as file:
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(file, header)
  for path, sentence in (
    (text, "is no NumPy array file"),
    (several, "holds several arrays"),
    (packed, "is no NumPy array file"),
    (huge, "its header declares 8000000000000000 bytes, it holds 0"),
    (tmp_path / "missing.npy", "No such file or directory"),
    (tmp_path, "Is a directory"),
  ):
    result = command("place", f"--histogram={path}", "--budget=1")
    assert sentence in refused(result)
  monkeypatch.setattr(place, "MAX_BYTES", 100)
  np.save(text, np.ones(30))
  result = command("place", f"--histogram={text}", "--budget=1")
  assert "has more than 100 bytes" in refused(result)
