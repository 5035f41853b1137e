"""A capacity split between slots and pages."""

import hypothesis
import hypothesis.strategies as st
import pytest

from sparse_prefix_jax import preset
from sparse_prefix_jax.cache.shares import split
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes

HYBRID = preset("tiny")
RECURRENT = preset("tiny", layer_types=("gated_delta_net",))
ATTENTION = preset("tiny", layer_types=("attention",))


def split_of(config, capacity, share):
  return split(
    capacity,
    slot_bytes=state_bytes(config),
    page_bytes=page_bytes(config),
    share=share,
    longest=-(-config.max_length // config.chunk),
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
