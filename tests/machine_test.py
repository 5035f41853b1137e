"""What reports say about where they were made."""

import datetime
import json
import pathlib

from benchmarks.record import write_result
from sparse_prefix_jax.machine import environment


def test_machine_versions_and_date_are_told() -> None:
  told = environment()
  assert datetime.date.fromisoformat(str(told["date"]))
  assert str(told["machine"]).endswith(" cores")
  assert isinstance(told["versions"], dict)
  assert {"python", "jax", "jaxlib", "flax", "numpy"} == set(told["versions"])


def test_benchmarks_keep_the_same(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "new" / "result.json"
  write_result(path, {"seconds": 1.5})
  assert json.loads(path.read_text()) == environment() | {"seconds": 1.5}
