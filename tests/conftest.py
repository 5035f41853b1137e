"""What holds in every test.

Promotion of dtypes is strict and promotion of ranks raises, x64 stays off, the
signatures of the package are checked at run time by jaxtyping and beartype,
and hypothesis draws the same examples each time, however long they take.

A program is compiled once in a run, whichever process asks for it first:
compiling is most of what the tests take. `JAX_COMPILATION_CACHE_DIR` names a
folder that keeps the programs for the next run too.

Tests of the contract compile the library's programs as XLA does by itself; most
others with little optimisation.
"""

import functools
import gc
import os
import pathlib
import shutil
import sys
import tempfile

# The processes that tests start inherit this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
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


# One module of machine code a program instead of up to 32, each of which costs
# a pass of the compiler: the functions in it are the same.
_ONE_MODULE = "--xla_cpu_parallel_codegen_split_count=1"
# Fusions by XLA's older emitter compile in two thirds of the time. Tests of the
# other markers have the newer one, which is XLA's choice, and so has what
# `optimisation` gives it back to.
_OLDER_EMITTER = "--xla_cpu_use_fusion_emitters=false"


def _is_default(config):
  """Whether this run is not of the tests of another marker."""
  return config.option.markexpr.startswith("not slow and")


def pytest_configure(config):
  """Chooses how XLA compiles, and where all processes of this run keep it."""
  default = _is_default(config)
  flags = (_ONE_MODULE, _OLDER_EMITTER) if default else (_ONE_MODULE,)
  os.environ.setdefault("XLA_FLAGS", " ".join(flags))
  # While tests are imported; see `optimisation`.
  jax.config.update("jax_disable_most_optimizations", default)
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


_TESTS = pathlib.Path(__file__).parent


@pytest.fixture
def unchecked_types(monkeypatch):
  """Users do not have the checks of types that the tests run with."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# These look for what is wrong on the host, a slot or a page, or compare numbers
# within a tolerance: less optimisation shows it too.
LITTLE = (
  *("benchmarks", "cache", "commands", "evaluation", "project", "serving"),
  "training",
  *("placement/conditional_test.py", "placement/dynamic_program_test.py"),
  *("placement/heuristics_test.py", "placement/priced_test.py"),
  "models/family_logits_test.py",
)
# The contract itself: the library's programs are compiled as XLA does it for
# users. Gradients, and what is compared with programs of a test, are not.
CONTRACT = (
  "contract",
  "models/family_bits_test.py",
  "models/own_layer_test.py",
  "models/preset_logits_test.py",
)
_AS_XLA_DOES = {"xla_cpu_use_fusion_emitters": True}


def _is_below(path, names):
  """Whether a file is one of these, or in a folder of these."""
  return any(path.is_relative_to(_TESTS / name) for name in names)


def _on_cpu():
  return jax.default_backend() == "cpu"


@pytest.fixture(scope="module", autouse=True)
def optimisation(request):
  """Compiles programs of tests of the contract as XLA does, others faster.

  The bits of a cold run have to be those of a resumed one whatever compiles
  both.
  """
  path = request.path
  little = _is_default(request.config) and _is_below(path, LITTLE)
  if jax.config.read("jax_disable_most_optimizations") != little:
    jax.clear_caches()  # No function keeps what it was compiled to before.
    jax.config.update("jax_disable_most_optimizations", little)
  compiling = sys.modules.get("sparse_prefix_jax.runtime.compiling")
  with pytest.MonkeyPatch.context() as patch:
    # Processes that tests start are compiled for alike.
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(little))
    if compiling and _is_below(path, CONTRACT) and _on_cpu():
      patch.setattr(compiling, "compiler_options", lambda: dict(_AS_XLA_DOES))
    yield


@pytest.fixture
def little_optimisation():
  """Compiles faster in a test of closeness, of functions that only it calls."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


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
