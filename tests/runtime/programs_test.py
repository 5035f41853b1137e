"""The programs: nothing compiles again, pools stay in place."""

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, PrefixCache, decode, prefill
from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Chunks, Rows
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import programs
from tests.kernels.devices import HOPPER, TPUS, lowered
from tests.models_for_tests import small_config, small_model

PROGRAMS = ("prefill_group", "decode_step", "gather_rows", "head")
LADDER = (4, 8)


# The rows of the head are gathered from a program of any rung, and from the
# decode program; it has `head_rows` of the former, and all rows of the latter.
MOST = {
  "prefill_group": len(LADDER),
  "gather_rows": len(LADDER) + 1,
  "head": 2,
}


@pytest.fixture
def counted(monkeypatch):
  """The programs, each refusing to be traced more often than promised."""
  chex.clear_trace_counter()
  for name in PROGRAMS:
    function = chex.assert_max_traces(
      getattr(programs, f"_{name}"), n=MOST.get(name, 1)
    )
    donated = ("pools",) if name in ("prefill_group", "decode_step") else ()
    monkeypatch.setattr(
      programs, name, jax.jit(function, donate_argnames=donated)
    )


BATCHES = [1], [200, 3], [16, 17, 15, 64], [250], [130, 131, 9], [47], [250]


@pytest.mark.usefixtures("counted")
def test_nothing_is_traced_again_for_other_work():
  """Lengths, batch mixes, resume positions and captures are data."""
  model = small_model(ladder=LADDER)
  placement = PlacementPolicy("block", budget=32, chunk=16)
  cache = PrefixCache(model, capacity=1 << 20, placement=placement)
  past = np.random.default_rng(0).integers(0, 512, 250)
  resumed = set()
  for i, lengths in enumerate(BATCHES):
    chosen = [[p for p in (16, 48, 112) if p <= size] for size in lengths]
    out = prefill(
      model,
      cache,
      [past[:size] for size in lengths],
      capture=chosen if i % 2 else None,
      all_logits=i % 3 == 0,
    )
    resumed |= {report.resumed for report in out.reports}
    out = decode(model, cache, out.sequences, past[: len(lengths)])
    cache.release(out.sequences)
  assert len(resumed) > 3
  counts = [getattr(programs, name)._cache_size() for name in PROGRAMS]
  assert counts == [len(LADDER), 1, len(LADDER) + 1, 2]


def shapes(*shape, dtype=np.int32):
  return jax.ShapeDtypeStruct(shape, dtype)


def inputs_of(program):
  if program == "prefill_group":
    chunks = Chunks(*[shapes(4)] * 5)
    return programs.Group(shapes(4, 16), chunks, shapes(4, 16))
  active = shapes(4, dtype=np.bool_)
  rows = Rows(shapes(4), shapes(4), shapes(4), active)
  return programs.Step(shapes(4), rows, shapes(4, 16))


def small_pools(config, slots, pages):
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  return model.init_pools(slots=slots, pages=pages)


@pytest.mark.parametrize("program", ["prefill_group", "decode_step"])
def test_pools_are_updated_in_place(program):
  """Thousands of slots and pages need nothing beside the pools."""
  config = small_config(ladder=(4,))
  pools = jax.eval_shape(lambda: small_pools(config, 8192, 32768))
  frozen = programs.freeze(small_model(ladder=(4,)))
  lowered = getattr(programs, program).lower(frozen, pools, inputs_of(program))
  memory = lowered.compile().memory_analysis()
  total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pools))
  assert total > 1 << 28
  assert memory.alias_size_in_bytes == total
  # Activations take half of it, with 8 slots as with 8,192.
  assert memory.temp_size_in_bytes < 1 << 20


def test_captures_are_data_and_take_no_memory_of_their_own():
  """One program for any captures: its inputs do not say how many there are."""
  model = small_model()
  frozen, traces = programs.freeze(model), programs.prefill_group._cache_size()
  for wanted in (0, 1, 4):
    write = np.full(4, NONE, np.int32)
    write[:wanted] = range(wanted)
    chunks = Chunks(
      read=np.array([ZERO, -2, -2, -2], np.int32),
      write=write,
      length=np.full(4, 16, np.int32),
      position=np.arange(4, dtype=np.int32) * 16,
      request=np.zeros(4, np.int32),
    )
    table = np.zeros((4, 16), np.int32)
    table[:, :4] = range(4)
    pools = model.init_pools(slots=8, pages=40)  # as in run_test
    group = programs.Group(np.ones((4, 16), np.int32), chunks, table)
    _, pools = programs.prefill_group(frozen, pools, group)
    kept = np.asarray(pools[0].slots.recurrent_state).any(axis=(1, 2, 3))
    assert kept.tolist() == [i < wanted for i in range(8)]
  assert programs.prefill_group._cache_size() <= traces + 1


def test_freezing_keeps_the_parameters():
  model = small_model()
  thawed = programs.freeze(model).thaw()
  assert isinstance(thawed, HybridDecoder)
  assert thawed.config == model.config
  for x, y in zip(jax.tree.leaves(model), jax.tree.leaves(thawed), strict=True):
    assert x is y


def test_models_of_one_configuration_share_their_programs():
  config = small_config(ladder=(4,))
  pools = jax.eval_shape(lambda: small_pools(config, 8, 32))
  one, two = (
    programs.freeze(HybridDecoder(config, rngs=nnx.Rngs(seed)))
    for seed in (0, 1)
  )
  assert jax.tree.structure((one, pools)) == jax.tree.structure((two, pools))
  other = HybridDecoder(small_config(ladder=(8,)), rngs=nnx.Rngs(0))
  assert jax.tree.structure(programs.freeze(other)) != jax.tree.structure(one)


def of_wide_heads(implementation, dtype="float32"):
  """A model whose heads kernels take, as shapes, and the shapes of pools."""
  config = small_config(
    chunk=64,
    ladder=(2,),
    key_width=64,
    value_width=64,
    head_width=64,
    implementation=implementation,
    dtype=dtype,
  )
  pools = jax.eval_shape(lambda: small_pools(config, 8, 32))
  model = jax.eval_shape(
    lambda: programs.freeze(HybridDecoder(config, rngs=nnx.Rngs(0)))
  )
  return model, pools


@pytest.mark.parametrize(
  ("implementation", "kernels"), [("auto", 3), ("xla", 0)]
)
def test_a_prefill_for_a_tpu_consists_of_its_kernels(implementation, kernels):
  """Convolution, delta rule, attention: what layers share is lowered once."""
  model, pools = of_wide_heads(implementation)
  group = programs.Group(shapes(2, 64), Chunks(*[shapes(2)] * 5), shapes(2, 8))
  text = lowered(programs.prefill_group, model, pools, group, kind=TPUS[0])
  assert text.count("tpu_custom_call") == kernels


@pytest.mark.parametrize(
  ("implementation", "kind", "has_kernel"),
  [
    *(("auto", HOPPER, True), ("mosaic_gpu", HOPPER, True)),
    *(("xla", HOPPER, False), ("xla", TPUS[0], False)),
    *(("auto", TPUS[0], True), ("mosaic_tpu", TPUS[0], True)),
  ],
)
def test_a_decode_step_advances_states_in_a_kernel(
  implementation, kind, has_kernel
):
  # The kernels of attention, prefill and step, take no float32 where forced.
  model, pools = of_wide_heads(implementation, "bfloat16")
  text = lowered(
    programs.decode_step, model, pools, inputs_of("decode_step"), kind=kind
  )
  assert ("gated_delta_rule_step" in text) == has_kernel
