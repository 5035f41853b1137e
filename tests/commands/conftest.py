"""Streams, a model, and commands run in this process."""

import json
import lzma
import pathlib

import pytest

from sparse_prefix_jax import __main__ as main
from sparse_prefix_jax.workloads import save_token_file, synthetic_stream


@pytest.fixture
def tokens(tmp_path):
  path = tmp_path / "stream.npz"
  stream = synthetic_stream(
    [1, 2, 0, 4], requests=60, length=256, groups=4, seed=1
  )
  save_token_file(path, stream)
  return path


@pytest.fixture
def trace(tmp_path):
  path = tmp_path / "trace.b16.jsonl.xz"
  lines = [
    {"timestamp": t, "input_length": 48, "hash_ids": [1, 2, t % 3]}
    for t in range(30)
  ]
  path.write_bytes(lzma.compress("\n".join(map(json.dumps, lines)).encode()))
  return path


@pytest.fixture
def command(capsys):
  """Runs a command; returns the exit status, stdout and stderr."""

  def run(*arguments):
    status = main.run(["sparse_prefix_jax", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err

  return run


@pytest.fixture
def folder(tmp_path):
  """A model's folder without weights, of widths that need a single rung."""
  golden = pathlib.Path(__file__).parents[1] / "models" / "golden" / "random"
  path = tmp_path / "model"
  path.mkdir()
  (path / "config.json").write_text((golden / "config.json").read_text())
  return path
