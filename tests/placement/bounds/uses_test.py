"""What intervals take, counted by stretches, and by fewer of them."""

import numpy as np
import pytest

from sparse_prefix_jax.placement.bounds.uses import Passage, merged, uses_of


def conversations(seed, requests=120):
  """Conversations that go on, under one of two system prompts."""
  random = np.random.default_rng(seed)
  talks, numbers, prompts = [[i % 2, i] for i in range(12)], {}, []
  for number in range(requests):
    talk = talks[int(random.integers(12))]
    talk += [1000 + number] * int(random.integers(1, 4))
    prefixes = [tuple(talk[:k]) for k in range(1, len(talk) + 1)]
    nodes = [numbers.setdefault(prefix, len(numbers)) for prefix in prefixes]
    prompts.append(Passage(tuple(nodes), len(talk) - 1, len(talk) + 1))
    if len(talk) > 25:
      del talk[2:]
  return prompts


def prices_of(uses, prices):
  """What the pages of each interval cost, one visit after another."""
  ends = np.append(uses.pieces[1:], uses.first.size)
  found = []
  for start, end in zip(uses.pieces, ends):
    cost = 0.0
    for piece in range(start, end):
      for visit in range(uses.first[piece], uses.last[piece]):
        steps = slice(uses.time[visit], uses.end[visit])
        share = uses.blocks[piece] / uses.sharing[visit]
        cost += share * prices[steps].sum()
    found.append(cost)
  return np.array(found)


@pytest.mark.parametrize("seed", range(3))
def test_every_interval_costs_the_same_by_fewer_pieces(seed):
  prompts = conversations(seed)
  uses = uses_of(prompts)
  fewer = merged(uses)
  assert fewer.first.size < 0.5 * uses.first.size
  assert fewer.time.size < 0.5 * uses.time.size
  assert fewer.blocks.sum() == uses.blocks.sum()
  prices = np.random.default_rng(seed).random(len(prompts))
  np.testing.assert_allclose(
    prices_of(fewer, prices), prices_of(uses, prices), rtol=1e-12
  )


def test_blocks_of_an_interval_add_up_to_what_it_spares():
  uses = merged(uses_of(conversations(7)))
  np.testing.assert_array_equal(
    np.add.reduceat(uses.blocks, uses.pieces), uses.gain
  )
