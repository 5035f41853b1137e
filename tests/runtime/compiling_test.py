"""Programs are compiled so that rows do not depend on their number."""

import jax
import jax.numpy as jnp
import pytest

from sparse_prefix_jax.runtime import sampler
from sparse_prefix_jax.runtime.compiling import Program, compiler_options
from sparse_prefix_jax.runtime.in_place import PoolProgram
from sparse_prefix_jax.serving.sampling import Sampling, sampling_rows
from tests.kernels.devices import BLACKWELL, HOPPER, TPUS, traced_for


def test_only_a_gpu_is_told_not_to_choose():
  assert compiler_options() is None
  for kind in TPUS:
    with traced_for(kind):
      assert compiler_options() is None
  for kind in (HOPPER, BLACKWELL):
    with traced_for(kind):
      options = compiler_options()
    assert options == {
      "xla_gpu_autotune_level": 0,
      "xla_gpu_dot_merger_threshold_mb": 0,
      "xla_gpu_enable_triton_gemm": False,
    }


def test_the_options_reach_the_compiler(monkeypatch):
  told = []
  jit = jax.jit

  def watched(function, **options):
    told.append(options["compiler_options"])
    return jit(function, **options)

  monkeypatch.setattr(jax, "jit", watched)
  program = Program(lambda x: x @ x)
  for around in (HOPPER, None, HOPPER):
    if around is None:
      out = program(jnp.ones((2, 2)))
    else:
      with traced_for(around):
        out = program(jnp.ones((2, 2)))
    assert out.tolist() == [[2, 2], [2, 2]]
  assert [options is None for options in told] == [False, True]


def test_a_program_is_lowered_and_counted_as_a_jitted_function():
  program = Program(lambda x: 2 * x)
  assert program._cache_size() == 0
  program(1)
  program(2)
  assert program._cache_size() == 1
  assert program.lower(1).as_text() == program.trace(1).lower().as_text()


@pytest.mark.parametrize("kind", [HOPPER, BLACKWELL, *TPUS])
@pytest.mark.parametrize("make", [Program, PoolProgram])
def test_a_program_stands_inside_of_a_larger_one(make, kind):
  program = make(lambda pools: pools @ pools)
  with traced_for(kind):
    around = jax.jit(program, compiler_options=compiler_options())
    assert around(jnp.ones((2, 2))).tolist() == [[2, 2], [2, 2]]


def test_sampling_stands_inside_of_a_larger_program():
  rows = sampling_rows([Sampling(temperature=1.0), None], 40)
  counts, positions = sampler.no_counts(40), jnp.zeros(2, jnp.int32)

  def drawn(logits):
    return sampler.sample(logits, rows, counts + 0, positions)[0].ids

  logits = jnp.arange(80.0).reshape(2, 40)
  with traced_for(HOPPER):
    ids = jax.jit(drawn)(logits)
    assert ids.tolist() == drawn(logits).tolist()
