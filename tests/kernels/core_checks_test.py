"""What holds no numbers, and what no scan of one request can be given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.lattice_attention import lattice_attention_core
from tests.kernels import operations

pytestmark = pytest.mark.usefixtures("unchecked_types")

C, N, SLOTS = 16, 2, 3
OPERATIONS = {
  "gated_delta_rule": operations.gated_delta_rule_at,
  "kimi_delta_attention": operations.kimi_delta_attention_at,
  "linear_attention": operations.linear_attention_at,
  "diagonal_scan": operations.diagonal_scan_at,
  "causal_conv1d": operations.causal_conv1d_at,
}
LENGTH = np.array([C, 3])
READ, WRITE = np.array([ZERO, CARRY]), np.array([NONE, 0])
CHUNKS = Chunks(READ, WRITE, LENGTH, np.array([0, C]), np.array([0, 0]))


@pytest.fixture(params=OPERATIONS)
def operation(request):
  return request.param, OPERATIONS[request.param](chunk=C)


def inputs_of(at):
  *inputs, pool, _ = at.empty_call(N, SLOTS)
  return inputs, pool, jnp.asarray(at.initial_state(0))


@pytest.mark.parametrize(
  "length, sentence",
  [
    (np.array(3), r"^length of \w+_core has shape \(\); it must be \[n\]"),
    (3, r"^length of \w+_core is an int; it must be an array \[n\]"),
    (np.zeros(0, np.int32), r"^length of .* \(0,\) for \[n\], but n is 2"),
    (np.array([C]), r"^length of .* \(1,\) for \[n\], but n is 2 elsewhere"),
    (np.array([C, C + 1]), "^length of .* holds 17; it must be 0 to 16"),
    (np.array([2**40, 3]), "^length of .* holds 1099511627776; it must be 0"),
    (np.array([1.5, 2]), "^length of .* has dtype float"),
  ],
)
def test_lengths_of_a_core(operation, length, sentence):
  """One of 2**40 would be taken for 0: JAX has 32 bits of it."""
  _, at = operation
  inputs, _, state = inputs_of(at)
  with pytest.raises(ValueError, match=sentence):
    at.core(*inputs, length, initial_state=state)


def test_lengths_of_the_core_of_attention():
  """One of 2**40 ran as a chunk of nothing."""
  new = jnp.ones((N, C, 1, C))
  for length in (C + 1, -1, 2**40):
    lengths = np.array([C, length])
    sentence = f"^length of lattice_attention_core holds {length}; it must be"
    with pytest.raises(ValueError, match=sentence):
      lattice_attention_core(new, new, new, lengths)


def test_inputs_of_a_core_have_names(operation):
  name, at = operation
  (_, *inputs), _, state = inputs_of(at)
  for wrong in (None, "x", 5, [0.0], np.float32(1)):
    with pytest.raises(ValueError, match=rf"^[qx] of {name}_core is a\w* "):
      at.core(wrong, *inputs, LENGTH, initial_state=state)


@pytest.mark.parametrize("kind", ["U1", "S1", "O", "M8[s]", "m8[s]", "f4,f4"])
def test_what_is_no_number_is_none(operation, kind):
  name, at = operation
  (x, *inputs), pool, state = inputs_of(at)
  wrong, told = np.zeros(N, kind), r"^{} of {} is .*; JAX has no such numbers"
  for field in ("read", "position"):
    given = CHUNKS._replace(**{field: wrong})
    with pytest.raises(ValueError, match=told.format(f"chunks.{field}", name)):
      at.packed(x, *inputs, pool, given)
  name = f"{name}_core"
  for given in (np.zeros(at.slot, kind), wrong):
    with pytest.raises(ValueError, match=told.format("initial_state", name)):
      at.core(x, *inputs, LENGTH, initial_state=given)
  with pytest.raises(ValueError, match=told.format("length", name)):
    at.core(x, *inputs, wrong, initial_state=state)
  with pytest.raises(ValueError, match=told.format("[qx]", name)):
    at.core(np.zeros(x.shape, kind), *inputs, LENGTH, initial_state=state)


def test_a_state_that_is_none_of_the_operation(operation):
  name, at = operation
  inputs, _, state = inputs_of(at)
  half = state.astype(jnp.float16)
  for wrong in ([0.0], None, state[None], state[:-1], half):
    with pytest.raises(ValueError, match=f"^initial_state of {name}_core "):
      at.core(*inputs, LENGTH, initial_state=wrong)


def test_a_state_of_numpy_in_64_bits_is_taken(operation):
  _, at = operation
  inputs, _, state = inputs_of(at)
  wide = np.asarray(state, np.float64)
  for given in (state, wide):
    assert at.core(*inputs, LENGTH, initial_state=given).state.shape == at.slot


def test_keys_and_what_was_donated_hold_no_numbers(operation):
  name, at = operation
  inputs, pool, _ = inputs_of(at)
  keys = CHUNKS._replace(read=jax.random.split(jax.random.key(0), N))
  with pytest.raises(ValueError, match=r"^chunks.read of .* must hold numbers"):
    at.packed(*inputs, pool, keys)
  pool.delete()
  with pytest.raises(ValueError, match=f"^pool of {name} is deleted: it was"):
    at.packed(*inputs, pool, CHUNKS)
