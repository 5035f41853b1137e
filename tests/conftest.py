"""What holds in every test.

Promotion of dtypes is strict and promotion of ranks raises, x64 stays off, the
signatures of the package are checked at run time by jaxtyping and beartype,
and hypothesis draws the same examples each time, however long they take.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
  "project", derandomize=True, deadline=None, max_examples=50, database=None
)
hypothesis.settings.load_profile("project")

jaxtyping.install_import_hook("sparse_prefix_jax", "beartype.beartype")


@pytest.fixture
def unchecked_types(monkeypatch):
  """Users do not have the checks of types that the tests run with."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
