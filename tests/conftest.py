"""What holds in every test.

Promotion of dtypes is strict and promotion of ranks raises, x64 stays off, the
signatures of the package are checked at run time by jaxtyping and beartype,
and hypothesis draws the same examples each time, however long they take.

A program is compiled once in a run, whichever process asks for it first:
compiling is most of what the tests take. `JAX_COMPILATION_CACHE_DIR` names a
folder that keeps the programs for the next run too.
"""

import functools
import gc
import os
import pathlib
import shutil
import tempfile

# The processes that tests start inherit this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# One module of machine code a program instead of up to 32, each of which costs
# a pass of the compiler: the functions in it are the same.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1")

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

# Traces are many small objects that stay: a look at every 700 costs a tenth of
# what tests take besides compiling.
gc.set_threshold(10_000, 10, 10)


def pytest_configure(config):
  """Makes a folder of compiled programs for all processes of this run."""
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="programs_of_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    config.add_cleanup(
      functools.partial(shutil.rmtree, folder, ignore_errors=True)
    )
  # JAX has read the environment: a plugin may have imported it, too.
  folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


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
