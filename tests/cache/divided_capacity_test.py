"""A capacity split between slots and pages."""

import hypothesis
import hypothesis.strategies as st
import pytest

from sparse_prefix_jax.cache.divided_capacity import SHARES, DividedCapacity
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from tests.models_for_tests import tiny_config

HYBRID = tiny_config()
RECURRENT = tiny_config(layer_types=("gated_delta_net",))
ATTENTION = tiny_config(layer_types=("attention",))


def split_of(config, capacity, share):
  return divided_capacity(config, capacity).split(share)


def divided_capacity(config, capacity):
  return DividedCapacity(
    capacity,
    slot_bytes=state_bytes(config),
    page_bytes=page_bytes(config),
    longest=-(-config.numerics.max_length // config.numerics.chunk),
  )


@hypothesis.given(
  config=st.sampled_from([HYBRID, RECURRENT, ATTENTION]),
  capacity=st.integers(0, 1 << 26),
  share=st.floats(0.01, 0.99),
)
def test_never_more_than_the_capacity_and_little_less(config, capacity, share):
  slots, pages = split_of(config, capacity, share)
  slot, page = state_bytes(config), page_bytes(config)
  held = slots * slot + pages * page
  assert slots >= 0
  assert pages >= 0
  assert held <= capacity
  assert capacity - held < max(slot, page)
  if config is HYBRID:
    assert slots * slot <= capacity * share < (slots + 1) * slot


def test_a_model_without_attention_has_pages_for_every_slot():
  slots, pages = split_of(RECURRENT, 10 * state_bytes(RECURRENT), 0.5)
  assert slots == 10
  assert pages == 10 * 4096 // 64


def test_a_model_without_states_has_slots_for_a_sequence():
  slots, pages = split_of(ATTENTION, 10 * page_bytes(ATTENTION), 0.5)
  assert pages == 10
  assert slots == 10


@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("config", [HYBRID, RECURRENT, ATTENTION])
def test_too_little_holds_no_state_or_page(config, capacity):
  slots, pages = split_of(config, capacity, 0.5)
  sizes = [(slots, state_bytes(config)), (pages, page_bytes(config))]
  assert all(count == 0 for count, size in sizes if size)


def test_usable_shares_let_the_longest_sequence_run():
  for capacity in (1 << 22, 1 << 24):
    sizes = divided_capacity(HYBRID, capacity)
    room = [sizes.split(share) for share in sizes.usable]
    assert all(slots >= 2 and pages >= 64 for slots, pages in room)
    assert sizes.first in sizes.usable and set(sizes.usable) <= set(SHARES)


def test_few_states_are_divided_in_other_places_than_many():
  for states in range(2, 200):
    sizes = DividedCapacity(1000 * states + 50, 1000, 20, longest=20)
    slots = [sizes.split(share)[0] for share in sizes.usable]
    assert len(slots) <= 8 and slots == sorted({*slots})
    assert states < 5 or 2 < sizes.split(sizes.first)[0] < slots[-1]
    assert states < 100 or sizes.usable == SHARES
    assert slots[-1] >= (0.8 if 4 < states < 10 else 0.4) * states


def test_where_the_longest_never_fits_any_share_will_do():
  sizes = divided_capacity(HYBRID, 1 << 20)
  assert len(sizes.usable) > 1
  assert all(sizes.split(s)[0] >= 2 for s in sizes.usable)


@pytest.mark.parametrize("config", [RECURRENT, ATTENTION])
def test_one_kind_of_layers_has_nothing_to_divide(config):
  assert len(divided_capacity(config, 1 << 24).usable) == 1
