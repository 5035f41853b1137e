import numpy as np

from sparse_prefix_jax.placement import Features
from sparse_prefix_jax.placement.cue_learner import CueLearner
from sparse_prefix_jax.placement.cues import Prompt


def test_cues_do_not_depend_on_when_there_was_time_to_learn():
  """Nor on what a prompt shows that repeats an entry or goes on from it."""
  rng = np.random.default_rng(0)
  busy, idle = CueLearner(chunk=4), CueLearner(chunk=4)
  found = []
  for number in range(60):
    ids = rng.integers(0, 9, 30)
    ids[[10, 11]] = 20, 21
    prompt, overlap = Prompt(ids, number % 2), int(rng.choice([12, 2, 29, 25]))
    found.append(busy.cue(prompt, 0))
    assert idle.cue(prompt, 0) == found[-1]
    for learner in (busy, idle):
      learner.observe(overlap, matched=Features(25), prompt=prompt)
    idle.catch_up()
    idle.catch_up()
  assert found[-1] == 12
  own = idle._state[0].of[0]
  assert busy.bytes == idle.bytes > 0
  assert own.pairs.tolist() == [(20 << 32) + 21]


def test_only_what_is_not_known_yet_is_searched():
  learner = CueLearner(chunk=2)
  for beginning in (3, 4, 5, 6):
    prompt = Prompt(np.array([beginning, 7, 8, 9, 9]))
    learner.observe(3, matched=Features(5), prompt=prompt)
  again = Prompt(np.array([1, 7, 8, 2, 7, 8, 3]))
  assert learner.cue(again, 0) == 6
  assert learner.cue(again, 5) == 0
  # Two in four of them is not sure enough for who has matched something.
  assert [learner.cue(again, overlap) for overlap in (1, 2)] == [6, 6]
  for beginning in (3, 4, 5, 6):
    passing = Prompt(np.array([7, beginning, 7, 8, 9]))
    learner.observe(2, matched=Features(9), prompt=passing)
  assert [learner.cue(again, overlap) for overlap in (1, 2)] == [6, 0]


def test_nobody_is_left_at_the_headers_of_turns():
  """Talks share one of three beginnings, and go on, each turn at a header."""
  rng, learner, header = np.random.default_rng(0), CueLearner(chunk=4), [7, 8]
  beginnings = [rng.integers(10, 99, 20).tolist() + header for _ in range(3)]
  last, told = [Features(22)] * 3, []
  for talk in range(40):
    ids, matched, overlap = beginnings[talk % 3], last[talk % 3], 22
    for turn in range(int(rng.integers(1, 7))):
      ids = ids + rng.integers(100, 2**31, 8).tolist() + header
      prompt = Prompt(np.array(ids))
      told += [learner.cue(prompt, overlap)] if turn else []
      learner.observe(overlap, matched=matched, prompt=prompt)
      matched, overlap = Features(len(ids), overlap), len(ids)
    last[talk % 3] = matched
  assert np.count_nonzero(told) < 0.1 * len(told)


def test_who_teaches_nothing_takes_no_place_of_a_tenant():
  learner = CueLearner(chunk=2)
  for beginning in (4, 5):
    prompt = Prompt(np.array([beginning, 7, 8, 9, 9]))
    learner.observe(3, matched=Features(5), prompt=prompt)
  for tenant in range(100):
    prompt = Prompt(np.arange(9), tenant)
    learner.observe(5, matched=Features(5), prompt=prompt)
    learner.observe(6, matched=Features(9, 6), prompt=prompt)
  assert learner.cue(Prompt(np.array([1, 2, 7, 8, 3])), 0) == 4
