"""Every plan of a short stream is tried; of a long one, none."""

import numpy as np

from sparse_prefix_jax.placement.bounds import of_few
from sparse_prefix_jax.placement.bounds.uses import Passage

SIZES = {"state": 1.0, "page": 1.0, "warmup": 0, "enough": 99}


def in_turn(count):
  """Two prompts of two blocks, one after the other."""
  return [Passage((2 * (n % 2), 2 * (n % 2) + 1), 2, 2) for n in range(count)]


def test_with_room_for_all_everything_is_saved():
  room = np.full(6, 9.0)
  assert of_few.best_plan(in_turn(6), room, **SIZES) == 8


def test_a_shallow_state_is_taken_where_a_deep_one_has_no_room():
  room = np.full(6, 2.0)
  assert of_few.best_plan(in_turn(6), room, **SIZES) == 2
  assert of_few.best_plan(in_turn(6), np.full(6, 1.9), **SIZES) == 0


def test_pages_on_the_way_of_who_runs_are_no_burden():
  """Between two requests of one prefix a state needs room for itself alone."""
  prompts = [Passage((0, 1, 2), 3, 3)] * 2
  assert of_few.best_plan(prompts, np.array([1.0, 0.0]), **SIZES) == 3


def test_before_the_measured_requests_there_is_room_for_everything():
  prompts, room = in_turn(6), np.array([0.0, 0.0, 0.0, 9.0, 9.0, 9.0])
  assert of_few.best_plan(prompts, room, **SIZES) == 2
  late = SIZES | {"warmup": 4}
  assert of_few.best_plan(prompts, room, **late) == 4


def test_long_streams_are_not_tried():
  prompts = in_turn(40)
  assert of_few.best_plan(prompts, np.full(40, 9.0), **SIZES) is None


def test_a_search_that_takes_too_long_says_nothing(monkeypatch):
  monkeypatch.setattr(of_few, "_MOST_TRIES", 10)
  prompts, room = in_turn(12), np.full(12, 2.0)
  assert of_few.best_plan(prompts, room, **SIZES) is None


def test_long_documents_are_given_up_before_their_pages_are_built(monkeypatch):
  def built(*_):
    raise AssertionError("the options were built")

  documents = [
    Passage(tuple(range(i * 1000, i * 1000 + 1000)), 1000, 1000)
    for i in range(16)
  ]
  monkeypatch.setattr(of_few, "_options", built)
  room = np.full(32, 9.0)
  assert of_few.best_plan(documents * 2, room, **SIZES) is None


def test_no_option_takes_more_bits_than_were_counted():
  prompts = [Passage(tuple(range(9)), 8, 9), *in_turn(12)]
  taken = sum(
    held.bit_length()
    for mine in of_few._options(prompts, 0)
    for option in mine
    for held in option.pages
  )
  assert 0 < taken <= of_few._bits(prompts, 0)
