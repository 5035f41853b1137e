"""Programs of rows: each takes rows of the width, and keeps their number."""

import jax.numpy as jnp
import pytest

from benchmarks.device.on_rows import on_rows


@pytest.mark.parametrize("width", [64, 128])
def test_every_program_takes_rows_of_its_width(width):
  x = jnp.ones((4, width))
  for name, (run, weight) in on_rows(width, "float32").items():
    out = run(weight, x)
    columns = int(name.split()[2]) if name.startswith("product") else width
    assert out.shape == (4, columns)
