"""What a store has no room for under one share moves it to another."""

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.share_chooser import LEAD, PATIENCE, PERIOD
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.store_rules import make_store, run_prompt
from sparse_prefix_jax.placement import PlacementPolicy, Planner

# Checks of types would take most of the time: prompts have hundreds of pages.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK = 4


def store_of(name="last", capacity=10_000):
  """States as large as ten pages; no share has room for the longest."""
  return make_store(
    Planner(PlacementPolicy(name, chunk=CHUNK), depths=200, serving=True),
    ModelSizes(state_bytes=100, page_bytes=10),
    capacity_bytes=capacity,
    longest=100_000,
  )


def ask(store, length, seed):
  ids = np.random.default_rng(seed).integers(0, 1_000, length).astype(np.int32)
  running = run_prompt(store, Request.of_tokens(ids, CHUNK))
  store.close(running)


@pytest.mark.parametrize("name", ["last", "adaptive"])
def test_refused_requests_move_to_a_share_that_has_room(name):
  """Prompts of 850 pages: beside a share of 0.4 there are 600."""
  store = store_of(name)
  for seed in range(PERIOD):
    with pytest.raises(CapacityError, match="850 pages"):
      ask(store, 850 * CHUNK, seed)
  ask(store, 850 * CHUNK, 0)
  assert store.chooser.share <= 0.08 and store.chooser.moves == 1
  store.audit()


def test_what_no_share_has_room_for_moves_nothing():
  store = store_of()
  for seed in range(2 * PERIOD):
    with pytest.raises(CapacityError):
      ask(store, 1_100 * CHUNK, seed)
  assert store.chooser.due == store.chooser.share == 0.4


def test_long_prompts_count_more_than_short_ones():
  """One of 500 pages and many of one, which alone would want states."""
  store = store_of()
  for seed in range(PERIOD - LEAD):
    ask(store, 2_000 if seed % 10 == 0 else 4, seed)
  assert store.chooser.chosen < 0.4


def choose(store, wanted):
  """What is chosen, as if an undivided store had used that share."""
  chooser = store.chooser
  chooser.chosen = chooser._choice(wanted)
  return chooser.chosen


def test_shares_count_as_what_they_come_to_in_whole_slots():
  """Of 26 slots 0.14 is three, 0.11 of the bytes, and 0.22 is five."""
  store = store_of(capacity=2_657)
  store.chooser.share = 0.14
  assert choose(store, 0.155) == 0.14  # by the bytes asked for, 0.14 is closer
  assert choose(store, 0.18) == 0.22


def test_a_share_that_stays_a_bit_closer_is_taken_in_the_end():
  store = store_of()
  for _ in range(PATIENCE - 1):
    assert choose(store, 0.345) == 0.4
  assert choose(store, 0.345) == 0.3


def test_what_is_closer_now_and_then_moves_nothing():
  store = store_of()
  for period in range(4 * PATIENCE):
    assert choose(store, 0.345 if period % 2 else 0.355) == 0.4


def test_what_follows_is_told_where_a_known_template_will_be_left():
  """It remembers no entries, and could not learn that from them."""
  store = store_of("adaptive")

  def prompt(document, question):
    rng = np.random.default_rng
    text = rng(document).integers(0, 500, 26)
    asked = rng(100 + question).integers(0, 500, 9)
    ids = np.array([*text, 600, 601, *asked], np.int32)
    return Request.of_tokens(ids, CHUNK)

  for document, question in [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5)]:
    store.close(run_prompt(store, prompt(document, question)))
  store.chooser.catch_up()
  for one in (store, store.chooser._shadow):
    assert one.match(prompt(3, 6)).resume_blocks == 28 // CHUNK


def test_a_capacity_of_few_states_is_divided_as_well_as_one_of_many():
  """Six states and short prompts: half of it are three, two of which run."""
  documents = np.random.default_rng(0).integers(0, 1_000, (6, 60))
  saved = []
  for share in (None, "undivided"):
    random = np.random.default_rng(1)
    store = make_store(
      Planner(PlacementPolicy("last", chunk=CHUNK), depths=20, serving=True),
      ModelSizes(state_bytes=100, page_bytes=2, probed=1),
      capacity_bytes=650,
      longest=64,
      state_share=share,
    )
    for number in range(4 * PERIOD):
      document = documents[min(random.geometric(0.5), 6) - 1]
      ids = np.append(document, 1_000 + number).astype(np.int32)
      store.close(run_prompt(store, Request.of_tokens(ids, CHUNK)))
    saved.append(store.stats().saved_tokens)
  assert saved[0] > 0.8 * saved[1] > 0
