"""Slots, pages and lengths that there are not get one sentence each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.gated_delta_rule import gated_delta_rule
from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
  lattice_attention_core,
  lattice_attention_step,
)
from sparse_prefix_jax.kernels.slot_checks import concrete, numbers
from tests.kernels import operations
from tests.trees import assert_same_bits

pytestmark = pytest.mark.usefixtures("unchecked_types")

C, N, SLOTS, PAGES = 16, 2, 3, 5
ON_STATES = {
  "gated_delta_rule": operations.gated_delta_rule_at,
  "kimi_delta_attention": operations.kimi_delta_attention_at,
  "linear_attention": operations.linear_attention_at,
  "diagonal_scan": operations.diagonal_scan_at,
  "causal_conv1d": operations.causal_conv1d_at,
}


@pytest.fixture(params=ON_STATES)
def operation(request):
  return request.param, ON_STATES[request.param](chunk=C)


@pytest.mark.parametrize("dtype", [jnp.int2, jnp.uint4, jnp.int8])
def test_numbers_of_few_bits_are_compared_with_any_bound(dtype):
  values = concrete("tokens", jnp.ones(2, dtype))
  assert values.dtype == np.int32 and (values < 512).all()


def test_durations_are_no_numbers():
  with pytest.raises(ValueError, match="read has dtype timedelta64"):
    concrete("read", np.array([1], "m8[s]"))


def chunks(**changes):
  """Two chunks of one request, from nothing to slot 0."""
  fields = {
    "read": [ZERO, CARRY],
    "write": [NONE, 0],
    "length": [C, 3],
    "position": [0, C],
    "request": [0, 0],
  }
  return Chunks(**{k: np.array(x) for k, x in (fields | changes).items()})


def packed(at, chunks):
  *inputs, pool, _ = at.empty_call(N, SLOTS)
  return at.packed(*inputs, pool, chunks)


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"write": [NONE, SLOTS]}, r"write of .* holds 3; .* below 3 or NONE \(-3"),
    # A slot that another request reads, behind it or before it.
    ({"read": [ZERO, 0], "write": [0, NONE]}, "write .* slot 0, which another"),
    ({"read": [0, ZERO], "write": [NONE, 0]}, "write .* slot 0, which another"),
    ({"write": [NONE, -2]}, "write of .* holds -2; it must be a slot below 3"),
    ({"write": [1, 1]}, "write of .* names slot 1 twice; each may be written"),
    ({"read": [SLOTS, CARRY]}, r"read of .* holds 3; .*, ZERO \(-1\) or CARRY"),
    ({"read": [-3, CARRY]}, "read of .* holds -3; it must be a slot below 3"),
    ({"length": [C, C + 1]}, "length of .* holds 17; it must be 0 to 16"),
    ({"length": [-1, C]}, "length of .* holds -1; it must be 0 to 16"),
    ({"write": [0.0, 1.0]}, "write of .* has dtype float64; it must hold int"),
    ({"read": [True, False]}, "read of .* has dtype bool; it must hold integ"),
    ({"length": 3}, r"length of .* has shape \(\); it must be \[n\]"),
    ({"read": [ZERO] * 3}, r"read of .* has shape \(3,\) .* n is 2 elsewhere"),
  ],
)
def test_chunks_that_name_what_there_is_not(operation, changes, sentence):
  name, at = operation
  with pytest.raises(ValueError, match=f"chunks.{sentence}") as refusal:
    packed(at, chunks(**changes))
  assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_inactive_chunk_may_name_any_slot(operation):
  _, at = operation
  changes = {"read": [ZERO, 0], "write": [0, NONE], "length": [C, 0]}
  out, pool = packed(at, chunks(**changes))
  assert jax.tree.leaves(out)[0].shape[0] == N and pool is not None


def test_chunks_that_are_none(operation):
  name, at = operation
  with pytest.raises(ValueError, match=f"chunks of {name} is a tuple; it must"):
    packed(at, tuple(chunks()))
  listed = chunks()._replace(write=[NONE, 0])
  with pytest.raises(ValueError, match=rf"write of {name} is a list; .* \[n\]"):
    packed(at, listed)


@pytest.mark.parametrize("dtype", ["int8", "complex64", "float8_e5m2"])
def test_inputs_that_are_no_numbers_to_add_up(operation, dtype):
  name, at = operation
  x, *inputs, pool, _ = at.empty_call(N, SLOTS)
  with pytest.raises(ValueError, match=rf"of {name} is {dtype}; it must be fl"):
    at.packed(x.astype(dtype), *inputs, pool, chunks())
  row, *rest = (u[:N] for u in at.tokens(0, N))
  slots = np.arange(N)
  with pytest.raises(ValueError, match=rf"of {name}_step is {dtype}; it must"):
    at.step(jnp.asarray(row, dtype), *rest, pool, slots, slots)


def test_what_only_looks_like_an_array_is_none(operation):
  name, at = operation
  x, *inputs, pool, _ = at.empty_call(N, SLOTS)
  masked = np.ma.masked_array(x, mask=x == 0)
  for wrong in (masked, jax.ShapeDtypeStruct(x.shape, x.dtype)):
    with pytest.raises(
      ValueError, match=rf"of {name} is a \w+; it must be an a"
    ):
      at.packed(wrong, *inputs, pool, chunks())


@pytest.mark.parametrize(
  "name, gates", [("gated_delta_rule", 2), ("diagonal_scan", 1)]
)
def test_a_step_takes_gates_of_less_digits_as_they_are(name, gates):
  """The exponential of a decay is float32, whatever the decay is."""
  at = ON_STATES[name](chunk=C)
  inputs = [jnp.asarray(x) for x in at.tokens(0, N)]
  short = [x.astype(jnp.bfloat16) for x in inputs[-gates:]]
  pool = jnp.ones((SLOTS, *at.slot))
  found = [
    at.step(*inputs[:-gates], *given, pool, np.arange(N), np.arange(N))
    for given in (short, [x.astype(jnp.float32) for x in short])
  ]
  assert_same_bits(*found)


def test_a_precision_that_there_is_not():
  at = ON_STATES["gated_delta_rule"](chunk=C)
  arguments = *at.empty_call(N, SLOTS)[:-1], chunks()
  for wrong in ("x", 1, True, np.zeros((9, 9))):
    with pytest.raises(ValueError, match=r"^precision of gated_.*; it must"):
      gated_delta_rule(*arguments, precision=wrong)


def test_what_is_allowed_passes(operation):
  _, at = operation
  packed(at, chunks(write=[2, 0], length=[C, 0]))
  # CARRY is what fills the rest of a call; before the first chunk it is ZERO.
  packed(at, chunks(read=[CARRY] * 2))
  out, pool = packed(at, chunks(read=[CARRY] * 2, length=[0, 0]))
  assert out.shape[:2] == (N, C) and len(pool) == SLOTS


def test_tracers_are_not_asked_for_values(operation):
  """A compiled program neither checks nor waits: the plan has been checked."""
  _, at = operation
  *inputs, pool, _ = at.empty_call(N, SLOTS)
  run = jax.jit(lambda chunks: at.packed(*inputs, pool, chunks))
  wrong = jax.tree.map(jnp.asarray, chunks(write=[NONE, SLOTS]))
  assert len(run(wrong)[1]) == SLOTS
  with pytest.raises(ValueError, match=r"chunks.read of .* has dtype float32"):
    run(wrong._replace(read=jnp.zeros(N)))


def test_values_of_a_tracer_are_none():
  seen = []

  @jax.jit
  def run(x):
    seen.append(concrete("x", x))
    return x

  run(jnp.arange(3))
  assert seen == [None]
  for x in (np.arange(3), jnp.arange(3)):
    assert concrete("x", x).tolist() == [0, 1, 2]


def step(at, read, write):
  inputs = [jnp.zeros((N, *x.shape[1:]), x.dtype) for x in at.tokens(0, 1)]
  pool = np.zeros((SLOTS, *at.slot), at.pool_dtype)  # as read from a file
  return at.step(*inputs, pool, np.array(read), np.array(write))


@pytest.mark.parametrize(
  "read, write, sentence",
  [
    ([0, 0], [1, SLOTS], r"^write of \w+_step holds 3; .* below 3 or NONE"),
    ([0, 0], [1, -2], "^write of .* holds -2; it must be a slot below 3"),
    ([0, 0], [1, 1], "^write of .* names slot 1 twice"),
    ([0, 1], [2, 0], "^write of .* names slot 0, which another row reads; row"),
    ([0, SLOTS], [1, 0], r"^read of .* holds 3; .* a slot below 3 or ZERO"),
    ([0, CARRY], [1, 0], "^read of .* holds -2; it must be a slot below 3 or"),
    (
      [0.0, 1.0],
      [1, 0],
      "^read of .* has dtype float64; it must hold integers",
    ),
    (0, [1, 0], r"^read of .* has shape \(\); it must be \[b\]"),
    ([0], [1, 0], r"^read of .* has shape \(1,\) for \[b\], but b is 2 else"),
  ],
)
def test_rows_of_a_step(operation, read, write, sentence):
  _, at = operation
  with pytest.raises(ValueError, match=sentence):
    step(at, read, write)


def test_rows_that_are_allowed(operation):
  _, at = operation
  out, pool = step(at, [ZERO, 2], [NONE, 2])
  assert len(out) == N and len(pool) == SLOTS
  assert len(step(at, [0, 0], [1, 2])[0]) == N
  # Free rows write nothing, all of them to the same slot.
  assert len(step(at, [ZERO, ZERO], [NONE, NONE])[0]) == N


def attend(table=None, **changes):
  """Two chunks of two requests, which have two pages each."""
  fields = {"position": [C, 0], "request": [0, 1], "length": [C, 3]}
  if table is None:
    table = np.array([[0, 1], [2, 3]]).repeat(BLOCK_PAGES // 2, axis=1)
    table[:, 1] = [1, 3]
  q, kv = jnp.zeros((N, C, 2, 8)), jnp.zeros((N, C, 1, 8))
  pools = [np.zeros((PAGES, C, 1, 8), np.float32)] * 2
  given = chunks(**(fields | changes))
  return lattice_attention(q, kv, kv, *pools, given, np.asarray(table))


WIDE = np.zeros((2, BLOCK_PAGES), int)
NARROW = np.arange(6).reshape(2, 3) % PAGES
END = C * BLOCK_PAGES


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (
      {"position": [END, 0]},
      f"chunks.position of .* holds {END}; .* {END}",
    ),
    ({"position": [-C, 0]}, "chunks.position of .* holds -16; it must be 0 or"),
    (
      {"position": [5, 0]},
      "chunks.position of .* holds 5; .* multiple of 16",
    ),
    ({"request": [0, 2]}, "chunks.request of .* holds 2; .* a row below 2"),
    ({"request": [-1, 1]}, "chunks.request of .* holds -1; .* a row below 2"),
    (
      {"length": [C, C + 1]},
      "chunks.length of .* holds 17; it must be 0 to 16",
    ),
    ({"table": WIDE + PAGES}, "page_table of .* holds 5; .* a page below 5"),
    ({"table": WIDE - 1}, "page_table of .* holds -1; it must be a page below"),
    ({"table": WIDE}, "lattice_attention names page 0 twice; each may be writ"),
    ({"table": WIDE / 2}, "page_table of .* has dtype float64; it must hold"),
    (
      {"table": WIDE[0]},
      r"page_table of .* has shape \(8,\); it must be \[r",
    ),
    ({"table": NARROW}, "page_table is 3 pages wide; it must be a multi"),
    ({"position": 0}, r"chunks.position of .* has shape \(\); it must be \["),
    (
      {"position": [0.5, 0]},
      "chunks.position of .* has dtype float64; it must",
    ),
  ],
)
def test_attention_to_pages_that_there_are_not(changes, sentence):
  with pytest.raises(ValueError, match=f"^{sentence}"):
    attend(**changes)


def test_attention_that_is_allowed():
  # An inactive chunk writes no page, and so not the same one.
  out, _, _ = attend(position=[C, C], request=[0, 0], length=[C, 0])
  assert out.shape == (N, C, 2, 8)


@pytest.mark.parametrize("length", [np.array(3), 3, np.array([C])])
def test_lengths_of_the_core_of_attention(length):
  q, kv = jnp.zeros((N, C, 2, 8)), jnp.zeros((N, C, 1, 8))
  with pytest.raises(ValueError, match="length of lattice_attention_core "):
    lattice_attention_core(q, kv, kv, length)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_values_that_weights_would_be_rounded_to(dtype):
  x = jnp.zeros((N, C, 1, 8), dtype)
  with pytest.raises(ValueError, match=f" is {dtype}; it must be floating poi"):
    lattice_attention_core(x.astype(jnp.float32), x, x, np.array([C, 3]))


def test_a_past_that_cannot_stand_before():
  x = jnp.zeros((N, C, 1, 8))
  wrong = {"is a list; it must be an array": [0.0], "must be .16": x[..., :4]}
  for sentence, past in wrong.items():
    for pasts in ((past, x), (x, past)):
      with pytest.raises(ValueError, match=rf"^past_\w+ of .* {sentence}"):
        lattice_attention_core(
          *(x, x, x, np.array([C, 3])), past_keys=pasts[0], past_values=pasts[1]
        )


def attend_step(**changes):
  fields = {
    "position": np.array([C, 3]),
    "active": np.array([True, True]),
    "page_table": np.array([[0, 1], [2, 3]]).repeat(BLOCK_PAGES // 2, axis=1),
  } | changes
  q, kv = jnp.zeros((N, 2, 8)), jnp.zeros((N, 1, 8))
  pools = [jnp.zeros((PAGES, C, 1, 8))] * 2
  return lattice_attention_step(q, kv, kv, *pools, *fields.values())


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"position": np.array([END, 0])}, f"position of .* holds {END}; it must"),
    (
      {"position": np.array([0, -1])},
      "position of .* holds -1; it must be 0 or",
    ),
    ({"position": np.array([0.0, 1.0])}, "position of .* has dtype float64"),
    ({"position": np.array(1)}, r"position of .* has shape \(\); .* \[b\]"),
    ({"active": np.array([1, 0])}, "active of .* is int64; it must be bool"),
    ({"active": np.array(True)}, r"active of .* has shape \(\); it must be"),
    ({"page_table": WIDE + PAGES}, "page_table of .* holds 5; .* a page below"),
    ({"page_table": WIDE - 1}, "page_table of .* holds -1; .* a page below 5"),
    ({"page_table": WIDE[0]}, r"page_table of .* has shape \(8,\); it must be"),
    (
      {"page_table": WIDE, "position": np.array([3, 3])},
      "lattice_attention_step names place of a token 3 twice",
    ),
  ],
)
def test_tokens_without_a_place(changes, sentence):
  with pytest.raises(ValueError, match=f"^{sentence}"):
    attend_step(**changes)


def test_tokens_that_are_allowed():
  # A free row writes no token, and so not to the same place.
  active, position = np.array([True, False]), np.array([3, 3])
  out, _, _ = attend_step(active=active, position=position, page_table=WIDE)
  assert out.shape == (N, 2, 8)


@pytest.mark.parametrize(
  "values", [["a", "b"], [2**70, 1], [2**31], [[1], [1, 2]], object()]
)
def test_what_are_no_numbers_of_32_bits_are_refused(values):
  """An array of 64 bits would be cut to 32 in silence."""
  told = r"^length is .*; it must be an array of integers of 32 bits\.$"
  with pytest.raises(ValueError, match=told):
    numbers("length", values)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  ("kind", "told"),
  [(">i4", "int32"), (">u2", "uint16"), (">f4", "float32"), ("g", "float32")],
)
def test_numbers_in_another_order_of_bytes_are_numbers(kind, told):
  found = numbers("length", np.array([3, 258], kind))
  assert found.dtype == told
  assert found.tolist() == [3, 258]
