"""What holds in every test.

Promotion of dtypes is strict and promotion of ranks raises, x64 stays off, the
signatures of the package are checked at run time by jaxtyping and beartype
(where parts are tested: whole models run as users run them, which is a fifth of
the time less), and hypothesis draws the same examples each time, however long
they take.

A program is compiled once in a run, whichever process asks for it first:
compiling is most of what the tests take. `JAX_COMPILATION_CACHE_DIR` names a
folder that keeps the programs for the next run too.

What looks for faults of the host is compiled with little optimisation, and what
draws weights with none.
"""

import functools
import gc
import os
import pathlib
import shutil
import signal
import tempfile
from typing import NamedTuple

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
from flax import nnx
from jax._src import compiler

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


_TESTS = pathlib.Path(__file__).parent
# They look for what is wrong on the host, a slot, a page, an order, or compare
# numbers within a tolerance: less optimisation shows it too. Not among them is
# what looks for bits that compiled programs lose.
LITTLE = (
  *("benchmarks", "cache", "commands", "evaluation", "project", "serving"),
  "training",
  *("placement/conditional_test.py", "placement/dynamic_program_test.py"),
  *("placement/heuristics_test.py", "placement/priced_test.py"),
  *("models/checkpoint", "models/checkpoint_test.py"),
  *("models/family_logits_test.py", "models/own_layer_test.py"),
  *("models/explicit_gradients_test.py", "runtime/sampler_test.py"),
  *("contract/traffic_test.py", "contract/findings_test.py"),
  # What is compiled there is mostly the interpreter of kernels.
  *("kernels/mosaic_gpu", "kernels/mosaic_tpu"),
  *("kernels/*/*mosaic_gpu*_test.py", "kernels/*/*mosaic_tpu*_test.py"),
)
# They look for bits that compiled programs lose, and are compiled as for users
# where they are not among those above. What is in neither list has all
# optimisation, and the older emitter.
AS_USERS = (
  *("contract", "layers/explicit_test.py", "models/family_bits_test.py"),
  *("models/explicit_carries_test.py", "models/preset_logits_test.py"),
  *("kernels/barrier_test.py", "kernels/chunks_test.py"),
  *("kernels/loops_test.py", "kernels/row_products"),
  "runtime/in_place_test.py",
)
# The newer emitter of fusions takes up to four times as long; JAX 0.11 has no
# other.
_OLDER = jax.__version_info__ < (0, 11) and os.environ["JAX_PLATFORMS"] == "cpu"
_EASIER = {"xla_cpu_use_fusion_emitters": False} if _OLDER else {}


# They run whole models, whose parts are tested elsewhere with their types.
WHOLE = (
  *("contract", "serving", "commands", "demo_test.py"),
  *("evaluation/served_test.py", "cache/hour_test.py"),
  *("models/family_bits_test.py", "models/family_logits_test.py"),
  *("models/explicit_*_test.py", "models/preset_logits_test.py"),
  *("models/checkpoint/mutations_test.py", "training/segments_test.py"),
)


def _is_among(request, patterns):
  """Whether the file of a test is one of these, or in one of these folders."""
  within = request.path.relative_to(_TESTS)
  paths = within, *within.parents
  return any(path.match(p) for path in paths for p in patterns)


class _Compiling(NamedTuple):
  """How the programs of a file of tests are compiled.

  Attributes:
    little: With little optimisation.
    easier: With the older emitter.
  """

  little: bool = False
  easier: bool = False

  @classmethod
  def of(cls, request):
    """In the usual run by the lists above; else all as for users."""
    option = request.config.option
    if option.as_users or not option.markexpr.startswith("not slow and"):
      return cls()
    little = _is_among(request, LITTLE)
    return cls(little, little or not _is_among(request, AS_USERS))


def pytest_addoption(parser):
  """Adds the flag of `make test-as-users`."""
  parser.addoption(
    "--as-users",
    action="store_true",
    help="compile all programs as XLA does for users",
  )


def pytest_configure(config):
  """Makes a folder of compiled programs for all processes of this run.

  Ctrl-C interrupts as it does in a terminal: a shell that starts the tests in
  the background has told them to ignore it.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.fixture(scope="module", autouse=True)
def types_of_parts(request):
  """Checks types in tests of parts; those of whole models would wait for it."""
  with pytest.MonkeyPatch.context() as patch:
    if _is_among(request, WHOLE):
      patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    yield


@pytest.fixture(scope="module", autouse=True)
def optimisation(request):
  """Compiles as XLA does for users, or what takes less time to compile.

  The bits of a cold run have to be those of a resumed one whatever compiles
  both.
  """
  chosen = _Compiling.of(request)
  if _CHOSEN[-1:] != [chosen]:
    jax.clear_caches()  # No function keeps what it was compiled to before.
    jax.config.update("jax_disable_most_optimizations", chosen.little)
    _CHOSEN[:] = [chosen]
  jax.jit(abs)(0)  # After that this process reads them no more.
  with pytest.MonkeyPatch.context() as patch:
    # So that processes which tests start compile alike.
    if chosen.little:
      patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    if chosen.easier and _EASIER:
      flags = [f"--{name}={value:d}" for name, value in _EASIER.items()]
      patch.setenv("XLA_FLAGS", " ".join([os.environ["XLA_FLAGS"], *flags]))
      patch.setattr(compiler, "get_compile_options", _easier_options)
    yield


_CHOSEN: list[_Compiling] = []
_options = compiler.get_compile_options


def _easier_options(*arguments, env_options_overrides=None, **choices):
  """What XLA is told, and that it take the older emitter."""
  overrides = _EASIER | (env_options_overrides or {})
  return _options(*arguments, env_options_overrides=overrides, **choices)


_STORED = _TESTS / "models" / "preset_logits_test.py"


@pytest.fixture(scope="module", autouse=True)
def quick_initializers(request):
  """Weights are drawn by programs that compile in an eighth of the time.

  Their last bits are others than those of users, and no test minds, but the
  one that compares with stored bits.
  """
  if request.path == _STORED or os.environ["JAX_PLATFORMS"] != "cpu":
    yield
    return
  with pytest.MonkeyPatch.context() as patch:
    for name in ("lecun_normal", "normal"):
      patch.setattr(nnx.initializers, name, _QUICK[name])
    yield


def _quick(make):
  """The same initializers, each jitted once, with no optimisation."""
  options = {"xla_backend_optimization_level": 0} | _EASIER

  @functools.cache
  def initializer(*arguments, **choices):
    draw = make(*arguments, **choices)
    quick = jax.jit(draw, static_argnums=(1, 2), compiler_options=options)
    return lambda key, *shape_and_dtype: (
      draw if isinstance(key, jax.core.Tracer) else quick
    )(key, *shape_and_dtype)

  return initializer


_QUICK = {
  name: _quick(getattr(nnx.initializers, name))
  for name in ("lecun_normal", "normal")
}


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
  _keep_few_regions()


@pytest.fixture(autouse=True)
def few_regions_within_a_file(request):
  """The same after each long test: hundreds of them may be in one file."""
  yield
  if request.node.get_closest_marker("slow"):
    _keep_few_regions()


def _keep_few_regions():
  if not _REGIONS.exists():
    return
  if _REGIONS.read_bytes().count(b"\n") > _MOST_REGIONS:
    jax.clear_caches()
