"""What holds in every test.

Promotion of dtypes is strict and promotion of ranks raises, x64 stays off, the
signatures of the package are checked at run time by jaxtyping and beartype,
and hypothesis draws the same examples each time, however long they take.
"""

import os
import pathlib

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


_REGIONS = pathlib.Path("/proc/self/maps")
_MOST_REGIONS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_regions():
  """Forgets compiled programs where they take too many regions of memory.

  Each is mapped apart; Linux ends a process that has more than 65,530.
  """
  yield
  if not _REGIONS.exists():
    return
  if _REGIONS.read_bytes().count(b"\n") > _MOST_REGIONS:
    jax.clear_caches()
