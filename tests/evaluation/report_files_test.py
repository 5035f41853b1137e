import json
import subprocess
import sys

import pytest

from sparse_prefix_jax.evaluation import Capacity, simulate, write_json
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import synthetic_stream


@pytest.fixture(scope="module")
def reports():
  stream = synthetic_stream([1, 1, 1], requests=30, length=512)
  policies = [PlacementPolicy("balanced", m) for m in (1, 4, 8)]
  policies.append(PlacementPolicy("no_cache"))
  return [simulate(stream, p, Capacity("sequences", 5)) for p in policies]


def test_writes_one_report_or_many(tmp_path, reports):
  write_json(tmp_path / "deep" / "all.json", reports)
  write_json(tmp_path / "one.json", reports[0])
  many = json.loads((tmp_path / "deep" / "all.json").read_text())
  assert [r["placement"] for r in many] == ["balanced"] * 3 + ["no_cache"]
  assert json.loads((tmp_path / "one.json").read_text()) == many[0]


def test_a_folder_that_is_a_file_is_named(tmp_path, reports):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="file"):
    write_json(tmp_path / "file" / "report.json", reports)


def test_only_who_draws_loads_what_draws():
  program = (
    "import sys; from sparse_prefix_jax import __main__, evaluation;"
    "print(evaluation.write_json, *sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  loaded = set(done.stdout.split())
  assert "sparse_prefix_jax.evaluation.report" in loaded
  drawing = "sparse_prefix_jax.evaluation.replay_plots"
  assert not loaded & {drawing, "matplotlib"}
