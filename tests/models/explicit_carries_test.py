"""A model with explicit carries: the bits of prefill, of decode, of a server.

`Server` is what somebody with a server of their own would write: nothing but
`scan`, `cell`, `head` and a dict of carries.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, decode, prefill, preset
from sparse_prefix_jax.contract import ColdRuns
from sparse_prefix_jax.layers import Numerics, RGLRUConfig, explicit
from sparse_prefix_jax.layers.mamba2 import Mamba2State
from sparse_prefix_jax.models.decoder import Branches
from tests.layers import reference
from tests.models.own_layer_test import side_by_side, toy
from tests.models_for_tests import cold_runs, last_placement, small_model
from tests.trees import assert_same_bits

scan = jax.jit(lambda model, *arguments: model.scan(*arguments))
cell = jax.jit(lambda model, *arguments: model.cell(*arguments))
head = jax.jit(lambda model, hidden: model.head(hidden))


@functools.cache
def tiny(dtype, page_dtype=None):
  fields = {"dtype": dtype, "page_dtype": page_dtype}
  config = preset("tiny", head_rows=64, max_length=512, **fields)
  return HybridDecoder(config, rngs=nnx.Rngs(0))


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def logits_of(model, hidden):
  """The head on all rows, always on as many as it has."""
  size, parts = model.config.numerics.head_rows, []
  hidden = np.asarray(hidden)
  for start in range(0, len(hidden), size):
    part = hidden[start : start + size]
    free = ((0, size - len(part)), (0, 0))
    parts.append(np.asarray(head(model, np.pad(part, free)))[: len(part)])
  return np.concatenate(parts)


def rows_of(tree, *rows):
  return jax.tree.map(lambda leaf: leaf[np.array(rows)], tree)


MODELS = {
  "float32": lambda: tiny("float32"),
  "bfloat16": lambda: tiny("bfloat16"),
  "int8": lambda: tiny("float32", "int8"),
  "int8 of bfloat16": lambda: tiny("bfloat16", "int8"),
  "own layers": toy,
  "side by side": side_by_side,
}


@pytest.mark.parametrize(
  "name",
  [
    *("float32", "int8", "own layers"),
    *(
      pytest.param(x, marks=pytest.mark.slow)
      for x in ("bfloat16", "int8 of bfloat16", "side by side")
    ),
  ],
)
def test_cold_and_resumed_have_the_bits_of_prefill(name):
  model = MODELS[name]()
  c = model.config.numerics.chunk
  size = 9 * c // 2
  tokens = random_tokens(size)
  cold = ColdRuns(model, longest=size).prefill(tokens)
  other = random_tokens(size, seed=1)
  batch, lengths = np.stack([other, tokens]), jnp.array([size - c, size])
  at = jnp.array([3 * c, c])
  carry = model.initialize_carry(2, 5 * c)
  out = jax.device_get(scan(model, carry, batch, lengths, at))
  assert_same_bits(logits_of(model, out.y[1]), cold.logits)
  kept = iter(cold.pools)
  for slots, pages in zip(out.captured, out.carry.pages):
    for leaf in jax.tree.leaves(slots):
      assert_same_bits(leaf[:, 1], next(kept)[np.array([2, 0])])
    for leaf in jax.tree.leaves(pages):
      assert_same_bits(leaf[1, :4], next(kept))
  assert next(kept, None) is None
  # The final pages serve every earlier position: one request from each.
  start = np.array([3 * c, c])
  rest, carry = np.zeros_like(batch), rows_of(out.carry, 1, 1)
  for row, position in enumerate(start):
    rest[row, : size - position] = tokens[position:]
  carry = carry._replace(
    position=jnp.array(start),
    slots=jax.tree.map(lambda leaf: leaf[:, 1], out.captured),
  )
  resumed = scan(model, carry, rest, jnp.array(size - start), at)
  resumed = jax.device_get(resumed)
  for row, position in enumerate(start):
    assert_same_bits(resumed.y[row, : size - position], out.y[1, position:])
    assert_same_bits(rows_of(resumed.carry, row), rows_of(out.carry, 1))


class Server:
  """A cache of exact prefixes, and one conversation at a time."""

  def __init__(self, model):
    self.model, self.carries = model, {}
    self.chunk, self.resumed = model.config.numerics.chunk, 0

  def prompt(self, tokens):
    """The logits of what was not found, from the deepest carry that is kept."""
    self.tokens, c = list(tokens), self.chunk
    points = range((len(tokens) - 1) // c * c, 0, -c)
    known = (p for p in points if tuple(tokens[:p]) in self.carries)
    self.resumed = next(known, 0)
    before = self.carries.get(tuple(tokens[: self.resumed]))
    return self._scan(before or self.model.initialize_carry(1))

  def token(self, token):
    """The logits after one more token; a whole chunk becomes canonical."""
    self.tokens.append(token)
    self.carry, y = cell(self.model, self.carry, jnp.array([token]))
    if len(self.tokens) % self.chunk == 0:
      self._scan(self.lattice._replace(pages=self.carry.pages))
    return logits_of(self.model, y)[0]

  def _scan(self, carry):
    """Takes what is missing, and keeps the carries of all whole chunks."""
    start, c = int(carry.position[0]), self.chunk
    rest = self.tokens[start:]
    whole = [(i + 1) * c for i in range(len(rest) // c)]
    out = self.model.scan(carry, jnp.array([rest]), capture_at=whole)
    self.carry, self.lattice = out.carry, carry
    for i, tokens in enumerate(whole):
      self.lattice = out.carry._replace(
        position=jnp.array([start + tokens]),
        slots=jax.tree.map(lambda leaf, i=i: leaf[i], out.captured),
      )
      self.carries[tuple(self.tokens[: start + tokens])] = self.lattice
    return logits_of(self.model, out.y[0])


# The guide to explicit carries keeps such a dict, too.
@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"page_dtype": "int8"}])
def test_a_dict_of_carries_serves_conversations_with_the_bits_of_the_cache(
  changes,
):
  model, tokens = small_model(**changes), random_tokens(120).tolist()
  server = Server(model)
  cache = cold_runs(**changes).cache(last_placement())

  def turn(prompt, said):
    """A prompt, then tokens that were said: the logits of both servers."""
    out = prefill(model, cache, [prompt], all_logits=True)
    found = server.prompt(prompt)
    expected = out.logits[0]
    shared = min(len(found), len(expected))
    assert_same_bits(found[-shared:], expected[-shared:])
    sequences = out.sequences
    for token in said:
      step = decode(model, cache, sequences, [token])
      sequences = step.sequences
      assert_same_bits(server.token(token), step.logits[0])
    cache.release(sequences)
    return out.reports[0].resumed, server.resumed

  # Two chunks, as in the other turns: one program.
  assert turn(tokens[:26], tokens[26:70]) == (0, 0)
  # The answer went through 48 and 64: both are there, exactly.
  assert turn(tokens[:90], tokens[90:100]) == (64, 64)
  # In the answer: the library placed no state there, the server kept all.
  assert turn(tokens[:60] + [7] * 10, []) == (16, 48)


def test_a_carry_off_the_lattice_is_decoded_from_and_not_scanned_from():
  model, tokens = small_model(), random_tokens(30)[None]
  carry = scan(model, model.initialize_carry(1, 64), tokens[:, :20]).carry
  with pytest.raises(ValueError, match=r"position holds 20; .* multiple of 16"):
    model.scan(carry, tokens[:, 20:])
  after, hidden = cell(model, carry, tokens[:, 20])
  assert after.position.tolist() == [21] and np.isfinite(hidden).all()


def test_the_gradient_of_an_embedding_is_that_of_its_token():
  model = small_model(layer_types=("attention",))
  tokens = np.random.default_rng(0).permutation(512)[None, :40]
  carry = model.initialize_carry(1, 64)
  branches, numerics = Branches(tuple(model.branches)), model.config.numerics

  @jax.jit
  @jax.grad
  def gradient(model):
    return jnp.sum(model.scan(carry, jnp.int32(tokens)).y ** 2)

  @jax.jit
  @jax.grad
  def inner(x):
    return jnp.sum(explicit.scan(branches, numerics, carry, x).y ** 2)

  found = np.asarray(gradient(model).embedding[...])
  expected = inner(model.embedding[...][jnp.array(tokens)])
  assert reference.distance(found[tokens], np.asarray(expected)) <= 1e-6
  assert not np.delete(found, tokens[0], axis=0).any()


def test_pages_in_int8_have_no_gradient():
  model = small_model(page_dtype="int8")
  carry, tokens = model.initialize_carry(1, 64), jnp.zeros((1, 40), jnp.int32)
  with pytest.raises(ValueError, match="page_dtype is 'int8', which has no gr"):
    jax.grad(lambda model: model.scan(carry, tokens).y.sum())(model)


@pytest.mark.parametrize("batch", [0, 1.0, True])
def test_a_batch_that_is_no_count_is_refused(batch, unchecked_types):
  del unchecked_types
  with pytest.raises(
    ValueError, match=r"batch is .*; it must be an int from 1"
  ):
    small_model().initialize_carry(batch)


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    ([[1, 512]], "tokens holds 512; an id is 0 to 511"),
    ([[-1, 5]], "tokens holds -1; an id is 0 to 511"),
    ([[1.0, 2.0]], "tokens has dtype float32; it must hold integers"),
    ([1, 2], r"tokens of scan has shape \(2,\); it must be \[b t\]"),
  ],
)
def test_what_are_no_ids_is_refused(tokens, message, unchecked_types):
  del unchecked_types
  model = small_model()
  with pytest.raises(ValueError, match=message):
    model.scan(model.initialize_carry(1, 64), jnp.array(tokens))


@pytest.mark.usefixtures("unchecked_types")
def test_the_carry_of_another_model_is_refused():
  model = small_model()
  carry, tokens = model.initialize_carry(2, 64), jnp.zeros((2, 16), jnp.int32)
  other = small_model(value_heads=2).initialize_carry(2, 64)
  first, *others = carry.slots
  renamed = Mamba2State(*first)  # of another kind of layer, with equal shapes
  renamed = carry._replace(slots=(renamed, *others))
  text = carry._replace(slots=jax.tree.map(lambda leaf: "x", carry.slots))
  for wrong in (other, carry._replace(slots=()), renamed, text):
    for call, ids in ((model.scan, tokens), (model.cell, tokens[:, 0])):
      with pytest.raises(ValueError, match="the arrays of another model"):
        call(wrong, ids)
  with pytest.raises(ValueError, match="carry is NoneType; it must be an Expl"):
    model.scan(None, tokens)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  ("wrong", "fault"),
  [
    ("a", r"is <U1; JAX has no such numbers"),
    (None, r"is object; JAX has no such numbers"),
    (1.5, r"position has dtype .*integers"),
  ],
)
def test_a_position_of_another_kind_is_refused(wrong, fault):
  model = small_model()
  carry, tokens = model.initialize_carry(1, 64), jnp.zeros((1, 16), jnp.int32)
  carry = carry._replace(position=np.array([wrong]))
  for call, ids in ((model.scan, tokens), (model.cell, tokens[:, 0])):
    with pytest.raises(ValueError, match=fault):
      call(carry, ids)


@pytest.mark.usefixtures("unchecked_types")
def test_positions_before_the_first_token_are_refused():
  model = small_model()
  carry, tokens = model.initialize_carry(1, 64), jnp.zeros((1, 16), jnp.int32)
  carry = carry._replace(position=jnp.array([-16]))
  for call, ids in ((model.scan, tokens), (model.cell, tokens[:, 0])):
    with pytest.raises(ValueError, match="holds -16; it must be at least 0"):
      call(carry, ids)


@pytest.mark.usefixtures("unchecked_types")
def test_narrow_ids_under_jit_are_those_of_wide_ones():
  """Their dtype does not hold `vocab_size`, which they are compared with."""
  model, ids = small_model(), np.array([200, 3])
  carry = model.initialize_carry(batch=2, capacity=64)
  narrow, wide = (
    cell(model, carry, ids.astype(dtype)) for dtype in (np.uint8, np.int32)
  )
  assert_same_bits(narrow, wide)


@pytest.mark.usefixtures("unchecked_types")
def test_captures_that_are_traced_one_by_one_are_taken():
  model = small_model()
  carry, tokens = model.initialize_carry(1, 64), jnp.zeros((1, 32), jnp.int32)
  out = jax.eval_shape(
    lambda *at: model.scan(carry, tokens, None, at).captured, 16, 32
  )
  assert all(leaf.shape[:2] == (2, 1) for leaf in jax.tree.leaves(out))


def test_ids_and_captures_that_are_not_known_are_no_numbers():
  """Under `jit` they cannot be refused: no other id is taken for them."""
  model = small_model()
  carry = model.initialize_carry(batch=2, capacity=64)
  tokens = np.stack([random_tokens(40), random_tokens(40, 1)])
  right = scan(model, carry, tokens, None, np.array([16, 32]))
  wrong = tokens.copy()
  wrong[0, 20] = model.config.vocab_size
  out = scan(model, carry, wrong, None, np.array([16, 32]))
  assert_same_bits(out.y[0, :16], right.y[0, :16])
  assert_same_bits(out.y[1], right.y[1])
  assert np.isnan(out.y[0, 20:]).all()
  at = np.array([16, 10, 32, 32, 64, 0])
  captured = scan(model, carry, tokens, None, at).captured
  for leaf, known in zip(
    jax.tree.leaves(captured), jax.tree.leaves(right.captured), strict=True
  ):
    assert_same_bits(leaf[0], known[0])
    assert np.isnan(leaf[1:]).all()
  _, y = cell(model, carry, np.array([-5, 3]))
  assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


@pytest.mark.usefixtures("unchecked_types")
def test_a_layer_refuses_a_carry_without_arrays():
  layer = RGLRUConfig(channels=8, heads=1).make(8, Numerics(), rngs=nnx.Rngs(0))
  carry = layer.initialize_carry((1, 8), capacity=64)
  carry = carry._replace(slots=jax.tree.map(lambda leaf: "x", carry.slots))
  x = jnp.zeros((1, 64, 8))
  for call, given in ((layer.scan, x), (layer.cell, x[:, 0])):
    with pytest.raises(ValueError, match="a leaf of the carry is a str"):
      call(carry, given)
