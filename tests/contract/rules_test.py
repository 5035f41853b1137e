"""Every rule of the contract that can be broken is broken once, and seen.

A test that no mutation fails proves nothing: here the code is changed on
purpose, one rule at a time, and the differing bits are counted.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax import PrefixCache, decode, prefill
from sparse_prefix_jax.cache.canonical import grow
from sparse_prefix_jax.cache.index import token_blocks
from sparse_prefix_jax.contract import ColdRuns, differing_bits, poison
from sparse_prefix_jax.kernels import chunks as packed
from sparse_prefix_jax.kernels.gated_delta_rule import gated_delta_rule_core
from sparse_prefix_jax.layers import attention, gated_delta_net
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.serving import decode as decode_module
from tests.models_for_tests import LONGEST, cold_runs, small_model


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def new_cache():
  placement = PlacementPolicy("block", budget=16, chunk=16)
  return PrefixCache(small_model(), capacity=1 << 20, placement=placement)


PROMPT, TURN = 40, 20


def second_turn():
  """Differing bits of a second turn, and of the decoding before it.

  Prefill, decode through a lattice point, release, then a longer prompt.
  """
  tokens, model = random_tokens(90), small_model()
  cache, decoded, expected = new_cache(), [], cold_turn()
  sequences = prefill(model, cache, [tokens[:PROMPT]]).sequences
  for end in range(PROMPT, PROMPT + TURN):
    poison(cache)
    out = decode(model, cache, sequences, tokens[end : end + 1])
    sequences = out.sequences
    decoded.append(out.logits[0])
  cache.release(sequences)
  poison(cache)
  out = prefill(model, cache, [tokens], all_logits=True)
  resumed = out.reports[0].resumed
  assert resumed == (PROMPT + TURN) // 16 * 16
  cold = cold_runs().prefill(tokens).logits[resumed:]
  return (
    differing_bits(out.logits[0], cold),
    differing_bits(np.stack(decoded), expected),
  )


@functools.cache
def cold_turn():
  """Cold decode logits of `second_turn`; made before anything is broken."""
  tokens = random_tokens(90)
  cold_runs().prefill(tokens)
  return np.stack(
    [
      cold_runs().decode(tokens[: end + 1], PROMPT)
      for end in range(PROMPT, PROMPT + TURN)
    ]
  )


def test_second_turn_differs_in_no_bit():
  cold_turn()
  assert second_turn() == (0, 0)


def test_stepwise_carry_kept_at_a_lattice_point_is_seen(monkeypatch):
  cold_turn()

  def keep_stepwise(cache, running, choose):
    del cache, choose
    for one in running:
      swapped = one.running_slot, one.own_slot
      one.own_slot, one.running_slot = swapped
      one.lattice_slot, one.computed = one.own_slot, one.length

  monkeypatch.setattr(decode_module, "_run_last_chunks", keep_stepwise)
  assert min(second_turn()) > 0


def test_canonical_chunk_deferred_is_seen(monkeypatch):
  cold_turn()
  run_last_chunks, late = decode_module._run_last_chunks, []
  step_rows = decode_module._step_rows

  def deferred(cache, running, choose):
    late.extend((one, one.lattice_slot) for one in running)
    for one in running:
      one.lattice_slot = one.running_slot

  def one_step_late(cache, running):
    logits = step_rows(cache, running)
    for one, before in late:
      one.length, one.lattice_slot = one.length - 1, before
      run_last_chunks(cache, [one], decode_module._no_rows)
      one.length += 1
    late.clear()
    return logits

  monkeypatch.setattr(decode_module, "_run_last_chunks", deferred)
  monkeypatch.setattr(decode_module, "_step_rows", one_step_late)
  _, decoded = second_turn()
  assert decoded > 0


def test_partial_page_inserted_is_seen():
  model, document = small_model(), random_tokens(40)
  longer = [document, np.zeros(8, np.int32), random_tokens(9, seed=1)]
  longer = np.concatenate(longer)  # goes on as the padding of the page did
  expected = cold_runs().prefill(longer).logits[-1]

  def last_logits(insert):
    cache = new_cache()
    sequences = prefill(model, cache, [document]).sequences
    insert(cache.store, cache.store.running[0])
    cache.release(sequences)
    return prefill(model, cache, [longer]).logits[0]

  def partial(store, running):
    padded, _ = token_blocks(np.pad(document, (0, 8)), 16)
    running.blocks.append(padded[2])
    running.captures = {48: running.running_slot}
    grow(store.index, running, 3, 16)
    (running.running_slot,) = store.index.reserve(1, 0).slots

  assert differing_bits(last_logits(lambda *_: None), expected) == 0
  assert differing_bits(last_logits(partial), expected) > 0


def state_after(x, lengths):
  """State of the delta rule after chunks of those lengths of 16 at most."""
  first, chunks = 0, []
  for length in lengths:
    padding = ((0, 16 - length), (0, 0), (0, 0))
    rows = (u[first : first + length] for u in x)
    chunks.append([np.pad(u, padding[: u.ndim]) for u in rows])
    first += length
  inputs = [jnp.asarray(np.stack(u)) for u in zip(*chunks)]
  scanned = jax.jit(gated_delta_rule_core)(
    *inputs, jnp.asarray(lengths), initial_state=jnp.zeros((2, 8, 8))
  )
  return scanned.state


def test_shifted_chunk_grid_is_seen():
  random = np.random.default_rng(0)
  heads = [random.normal(0, 0.3, (48, 2, 8)) for _ in range(3)]
  gates = [np.full((48, 2), value) for value in (-0.05, 0.8)]
  x = [u.astype(np.float32) for u in heads + gates]
  on_grid, shifted = (
    state_after(x, [16, 16, 16]),
    state_after(x, [1, 16, 16, 15]),
  )
  np.testing.assert_allclose(on_grid, shifted, rtol=1e-3, atol=1e-5)
  assert differing_bits(on_grid, state_after(x, [16, 16, 16])) == 0
  assert differing_bits(on_grid, shifted) > 0


def rung_bits(**changes):
  """Bits by which programs of 64 and of 1,024 rows differ."""
  tokens = random_tokens(1024)
  small, large = (
    ColdRuns(
      small_model(
        chunk=64, ladder=(rung,), max_length=1024, head_rows=64, **changes
      ),
      longest=1024,
    )
    .prefill(tokens)
    .logits
    for rung in (1, 16)
  )
  return differing_bits(small, large)


# It compiles four programs of a whole model for one rule.
@pytest.mark.slow
def test_vmap_over_tiles_is_seen(monkeypatch):
  assert rung_bits() == 0

  def over_tiles(function, *xs):
    return jax.vmap(function)(*xs)

  for module in (gated_delta_net, attention):
    monkeypatch.setattr(module, "map_rows", over_tiles)
  # Another eps: another configuration, hence programs of its own.
  assert rung_bits(eps=2e-6) > 0


ONE_HEAD = {"key_heads": 1, "value_heads": 1} | {
  "key_width": 64,
  "value_width": 64,
}


def one_chunk_bits(**changes):
  """Bits by which programs of one and of four chunks differ."""
  tokens, fields = random_tokens(640), ONE_HEAD | changes
  logits = [
    ColdRuns(
      small_model(
        chunk=64, ladder=(rung,), max_length=1024, head_rows=64, **fields
      ),
      longest=640,
    )
    .prefill(tokens)
    .logits
    for rung in (1, 4)
  ]
  return differing_bits(*logits)


def test_one_chunk_has_the_bits_of_four():
  assert one_chunk_bits() == 0


def test_loop_of_one_step_is_seen(monkeypatch):
  xla = sys.modules["sparse_prefix_jax.kernels.lattice_attention.xla"]
  for module in (packed, xla):
    monkeypatch.setattr(module, "two_steps", lambda xs: xs)
  # The XLA of JAX 0.11 gives a loop of one step the bits of a longer one.
  loses_bits = jax.__version_info__ < (0, 11)
  assert (one_chunk_bits(eps=2e-6) > 0) == loses_bits


def test_programs_of_few_rows_are_seen():
  # Why the configuration refuses such a ladder: 16 rows against 64.
  tokens = random_tokens(64)
  few, many = (
    ColdRuns(small_model(ladder=(rung,)), longest=LONGEST)
    .prefill(tokens)
    .logits
    for rung in (1, 4)
  )
  assert differing_bits(few, many) > 0


def test_multiplied_instead_of_selected_is_seen(monkeypatch):
  free, held = jnp.full((2,), jnp.nan), jnp.array([-0.0, 1.0])
  pool = jnp.stack([free, held, free])

  def scanned():
    chunks = packed.Chunks(
      read=jnp.array([1, packed.CARRY, packed.ZERO]),
      write=jnp.array([packed.NONE, 2, packed.NONE]),
      length=jnp.array([0, 0, 1]),
      position=jnp.zeros(3, jnp.int32),
      request=jnp.array([0, 0, 1]),
    )

    def cell(carry, x, length):
      del x, length
      return carry + 1, carry

    return packed.packed_scan(cell, pool, jnp.zeros(3), chunks)

  ys, kept = scanned()
  assert not np.isnan(ys[2]).any()
  assert differing_bits(kept, pool.at[2].set(held)) == 0

  def multiplied(condition, if_true, if_false):
    keep = condition.astype(jnp.float32)
    return if_true * keep + if_false * (1 - keep)

  monkeypatch.setattr(packed, "select", multiplied)
  _, kept = scanned()
  assert differing_bits(kept[2], held) > 0
