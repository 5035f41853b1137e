"""What a user may get wrong: one sentence, and nothing has changed."""

import copy
import datetime
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  CapacityError,
  HybridDecoder,
  PrefixCache,
  Ranked,
  Scheduler,
  decode,
  prefill,
)
from sparse_prefix_jax.cache import identity
from sparse_prefix_jax.cache.identity import fingerprint
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.models.cost import PrefillCost
from sparse_prefix_jax.placement import PlacementPolicy
from tests.models_for_tests import cold_runs, small_config, small_model

pytestmark = pytest.mark.usefixtures("unchecked_types")

PROMPT = list(range(40))
NAN = float("nan")


def new_cache(**changes):
  fields = {
    "capacity": "1MiB",
    "placement": PlacementPolicy("last", chunk=16),
  }
  return PrefixCache(small_model(), **(fields | changes))


@pytest.fixture(scope="module")
def lived_in():
  """A cache with an entry and a running sequence."""
  cache = new_cache()
  cache.release(prefill(small_model(), cache, [PROMPT]).sequences)
  out = prefill(small_model(), cache, [[7] * 20])
  return cache, out.sequences


def assert_refused(cache, call, match="", error=ValueError):
  before = cache.store.stats(), cache.store.index.stats, cache.sequences
  with pytest.raises(error, match=match) as caught:
    call()
  text = str(caught.value)
  assert text and "\n" not in text and len(text) < 500, text
  after = cache.store.stats(), cache.store.index.stats, cache.sequences
  assert after == before
  cache.audit()


@pytest.mark.parametrize(
  ("prompts", "match"),
  [
    (np.array([[1, 2]]).astype("timedelta64[s]"), "dtype timedelta64"),
    ([[datetime.timedelta(1)]], "dtype object"),
    ([np.ma.masked_array([1, 2], [False, True])], "masked array"),
    ([[1, None]], "dtype object"),
    ([["1", "2"]], "dtype <U1"),
    ([[True, False]], "dtype bool"),
    ([[1.0, NAN]], "dtype float64"),
    ([[2**70]], "holds id 1180591620717411303424"),
    ([[[1], [2, 3]]], "ragged"),
    ([5], r"has shape \(\)"),
    (5, "must be a sequence"),
    ("text", "must be a sequence"),
    (None, "must be a sequence"),
    ([None], "shape"),
  ],
)
def test_prompts(lived_in, prompts, match):
  cache, _ = lived_in
  assert_refused(cache, lambda: prefill(small_model(), cache, prompts), match)


@pytest.mark.parametrize("name", ["anchors", "capture"])
@pytest.mark.parametrize(
  "values",
  [
    [150],
    150,
    [[1.5]],
    [["64"]],
    [[True]],
    [[NAN]],
    [[None]],
    [[10**30]],
    [[-16]],
    "16",
    [[16], [16]],
  ],
)
def test_positions(lived_in, name, values):
  cache, _ = lived_in

  def call():
    return prefill(small_model(), cache, [PROMPT], **{name: values})

  assert_refused(cache, call, name)


@pytest.mark.parametrize("salt", [5, None, 1.5, [b"a"]])
def test_salts(lived_in, salt):
  cache, _ = lived_in

  def call():
    return prefill(small_model(), cache, [PROMPT], salt=salt)

  assert_refused(cache, call, "salt must be a text or bytes")


@pytest.mark.parametrize("handle", [5, None, "one", (1, 20), object()])
def test_handles(lived_in, handle):
  cache, _ = lived_in
  refused = "a sequence is a handle"
  assert_refused(
    cache, lambda: decode(small_model(), cache, [handle], [1]), refused
  )
  assert_refused(cache, lambda: cache.release([handle]), refused)
  assert_refused(cache, lambda: cache.fork(handle), refused)


@pytest.mark.parametrize("sequences", [None, 5, "whole", np.array(3)])
def test_lists_of_handles(lived_in, sequences):
  cache, (running,) = lived_in
  sequences = running if isinstance(sequences, str) else sequences
  refused = "sequences must be a list of handles"
  assert_refused(
    cache, lambda: decode(small_model(), cache, sequences, [1]), refused
  )
  assert_refused(cache, lambda: cache.release(sequences), refused)


@pytest.mark.parametrize(
  "tokens", [4, [4, 5], [], [1.5], ["4"], [True], [[4]], [512], None, [NAN]]
)
def test_next_tokens(lived_in, tokens):
  cache, sequences = lived_in

  def call():
    return decode(small_model(), cache, sequences, tokens)

  assert_refused(cache, call, "next_tokens")


@pytest.mark.parametrize("all_logits", [1, None, "no", np.array([1])])
def test_all_logits(lived_in, all_logits):
  cache, _ = lived_in

  def call():
    return prefill(small_model(), cache, [PROMPT], all_logits=all_logits)

  assert_refused(cache, call, "all_logits must be True or False")


@pytest.mark.parametrize(
  "keep", [-1, 21, 1.5, "5", True, NAN, np.timedelta64(3, "s")]
)
def test_keep(lived_in, keep):
  cache, sequences = lived_in
  assert_refused(cache, lambda: cache.release(sequences, keep=keep), "keep")


def test_decoding_nothing_gives_nothing(lived_in):
  cache, _ = lived_in
  out = decode(small_model(), cache, [], [])
  assert out.logits.shape == (0, 512) and out.sequences == ()


def test_under_jit_is_said(lived_in):
  cache, sequences = lived_in

  def traced(ids):
    return prefill(small_model(), cache, [ids]).logits[0]

  assert_refused(
    cache, lambda: jax.jit(traced)(jnp.arange(5)), "outside of jit"
  )

  def step(ids):
    return decode(small_model(), cache, sequences, ids).logits

  assert_refused(cache, lambda: jax.jit(step)(jnp.arange(1)), "outside of jit")


def test_under_jit_with_ids_that_are_known_is_said(lived_in):
  """Nothing in the arguments is traced, but the pools would be."""
  cache, sequences = lived_in
  scheduler = Scheduler(small_model(), cache)
  for call in (
    lambda: prefill(small_model(), cache, [PROMPT]),
    lambda: decode(small_model(), cache, sequences, [1]),
    lambda: cache.fork(sequences[0]),
    scheduler.step,
    new_cache,
  ):
    assert_refused(cache, lambda call=call: jax.jit(call)(), "outside of jit")
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(cache.pools))
  out = prefill(small_model(), cache, [PROMPT])
  assert out.reports[0].resumed == 32
  cache.release(out.sequences)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"capacity": None}, "capacity"),
    ({"capacity": NAN}, "capacity"),
    ({"capacity": True}, "capacity"),
    ({"capacity": "4 GiB of it"}, "capacity"),
    ({"capacity": "1KiB"}, "a sequence needs 2 states"),
    ({"state_share": "half"}, "state_share"),
    ({"state_share": NAN}, "state_share"),
    ({"state_share": True}, "state_share"),
    ({"eviction": "index"}, "eviction index is that of placement adaptive"),
    ({"placement": "adaptive", "eviction": "lru"}, "evicts by its index"),
    ({"placement": "adaptive:2"}, "placement adaptive takes no budget"),
    ({"eviction": Ranked()}, "one of .*, or a class of rules"),
    ({"placement": ["last"]}, "`register_placement` gives a rule its name"),
    ({"placement": 5}, "placement must be"),
    ({"placement": "everywhere"}, "everywhere"),
    ({"remembered": -1}, "remembered"),
    ({"remembered": "much"}, "remembered"),
    ({"cost": 5}, "cost must be a PrefillCost"),
    ({"cost": PrefillCost(-1.0, 0.0, "x")}, "cost"),
    ({"cost": PrefillCost(NAN, 0.0, "x")}, "cost"),
  ],
)
def test_choices_of_a_cache(changes, match):
  with pytest.raises(ValueError, match=match) as caught:
    new_cache(**changes)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "capacity", ["1MiB", 1 << 20, np.int64(1 << 20), 1048576.0]
)
def test_capacities_that_work(capacity):
  assert new_cache(capacity=capacity).stats().capacity_bytes == 1 << 20


def test_a_subclass_is_refused_since_its_head_would_be_ignored():
  class Louder(HybridDecoder):
    def head(self, hidden):
      return 2 * super().head(hidden)

  louder = Louder(small_config(), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="model is a Louder; a cache serves"):
    PrefixCache(louder, capacity="1MiB")
  cache = new_cache()
  assert_refused(cache, lambda: prefill(louder, cache, [PROMPT]), "Louder")
  for thing in (None, 5, "model"):
    assert_refused(cache, lambda t=thing: prefill(t, cache, [PROMPT]), "model")


def test_weights_in_numpy_work():
  """As after a restored checkpoint."""
  model = jax.tree.map(
    np.asarray, HybridDecoder(small_config(), rngs=nnx.Rngs(0))
  )
  cache = PrefixCache(
    model, capacity="1MiB", placement=PlacementPolicy("last", chunk=16)
  )
  out = prefill(model, cache, [PROMPT])
  expected = cold_runs().prefill(np.array(PROMPT, np.int32)).logits[-1]
  assert differing_bits(out.logits[0], expected) == 0
  out = prefill(small_model(), cache, [PROMPT])  # the same weights
  assert out.reports[0].resumed == 32


def test_equal_weights_in_other_arrays_take_the_place_of_the_first():
  """As of a restored checkpoint: the first may go, and are not kept alive."""
  first = HybridDecoder(small_config(), rngs=nnx.Rngs(0))
  second = jax.tree.map(lambda x: x + 0, first)
  cache = PrefixCache(first, capacity="1MiB")
  prefill(second, cache, [PROMPT])
  assert cache.model is second
  kept = weakref.ref(jax.tree.leaves(first)[0])
  del first
  gc.collect()
  assert kept() is None
  for leaf in jax.tree.leaves(cache.pools):
    leaf.delete()
  with pytest.raises(RuntimeError, match="took them"), cache.call():
    raise RuntimeError("a program failed, and took them")
  out = prefill(second, cache, [PROMPT])
  expected = cold_runs().prefill(np.array(PROMPT, np.int32)).logits[-1]
  assert differing_bits(out.logits[0], expected) == 0


def test_two_callers_with_equal_weights_hash_them_once(monkeypatch):
  hashed = []

  def counted(leaves):
    hashed.append(len(leaves))
    return fingerprint(leaves)

  monkeypatch.setattr(identity, "fingerprint", counted)
  first = HybridDecoder(small_config(), rngs=nnx.Rngs(0))
  second, third = (jax.tree.map(lambda x: x + 0, first) for _ in range(2))
  cache = PrefixCache(first, capacity="1MiB")
  for model in (second, first, second, first):
    cache.check_model(model)
    assert cache.model is model
  assert len(hashed) == 2  # of either, once
  cache.check_model(third)
  assert len(hashed) == 4
  jax.tree.leaves(first)[0].delete()
  assert_refused(cache, lambda: cache.check_model(first), "are gone")


def test_copies_are_refused(lived_in):
  cache, _ = lived_in
  for call in (copy.copy, copy.deepcopy, pickle.dumps):
    assert_refused(
      cache, lambda c=call: c(cache), "cannot be copied", TypeError
    )


def test_a_shortage_says_who_holds_what_is_missing():
  cache = new_cache(capacity=200_000)
  prompts = [[i] * 30 for i in range(4)]
  prefill(small_model(), cache, prompts[:1])

  def call():
    return prefill(small_model(), cache, prompts[1:] * 2)

  assert_refused(cache, call, "running sequences hold", CapacityError)


def test_other_weights_replace_the_old_ones():
  cache = new_cache()
  running = prefill(small_model(), cache, [PROMPT]).sequences
  other = HybridDecoder(small_config(), rngs=nnx.Rngs(1))
  pools = cache.pools
  cache.replace_weights(other)
  assert cache.pools is pools and cache.stats().held_bytes == 0
  with pytest.raises(ValueError, match="weights of its cache were replaced"):
    decode(other, cache, running, [1])
  with pytest.raises(ValueError, match="other weights"):
    prefill(small_model(), cache, [PROMPT])
  out = prefill(other, cache, [PROMPT])
  assert out.reports[0].resumed == 0
  alone = PrefixCache(
    other, capacity="1MiB", placement=PlacementPolicy("last", chunk=16)
  )
  expected = prefill(other, alone, [PROMPT])
  assert differing_bits(out.logits[0], expected.logits[0]) == 0
  bigger = small_model(hidden=256)
  assert_refused(cache, lambda: cache.replace_weights(bigger), "hidden")


def test_arguments_in_another_order_are_said(lived_in):
  cache, sequences = lived_in
  for call in (
    lambda: prefill(cache, small_model(), [PROMPT]),
    lambda: decode(cache, small_model(), sequences, [1]),
  ):
    assert_refused(cache, call, "cache is a HybridDecoder; it must be")


def test_what_prefill_returned_is_no_handle(lived_in):
  cache, _ = lived_in
  out = prefill(small_model(), cache, [PROMPT])
  assert_refused(cache, lambda: cache.release(out), "a sequence is a handle")
  cache.release(out.sequences)


def test_a_placement_by_name_and_budget():
  cache = new_cache(placement="block:32")
  assert cache.store.planner.policy == PlacementPolicy("block", 32, 16)
  for name in ("block:", "block:x", "last:3", ":3", "block:32:5"):
    with pytest.raises(ValueError, match=r"placement|budget|name"):
      new_cache(placement=name)


def test_the_handle_of_an_interrupted_call_says_so(monkeypatch):
  cache = new_cache()
  sequences = prefill(small_model(), cache, [PROMPT]).sequences
  with monkeypatch.context() as patch:
    patch.setattr(PrefixCache, "run_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      decode(small_model(), cache, sequences, [1])
  match = "has ended: its call was interrupted or failed"
  with pytest.raises(ValueError, match=match):
    cache.release(sequences)
