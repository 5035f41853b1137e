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


def test_the_widest_products_are_those_of_a_model_that_has_them():
  columns = [x.split()[2] for x in on_rows(1024, "bfloat16") if "with" in x]
  assert columns == ["512", "1024", "2048", "6144", "8192"]
  assert "product with 6144 columns" not in on_rows(64, "bfloat16")
