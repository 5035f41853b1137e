"""Which pages a program of lattice_attention visits, and how it adds them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  chunks_mosaic_gpu,
  lattice_attention,
)
from tests.kernels.devices import HOPPER, traced_for
from tests.kernels.packing import chunks_of

CHUNK = 64
POSITIONS = np.arange(12) * CHUNK


def visited(window, length):
  """The pages of chunks of that length at each of the positions."""
  like = jnp.zeros_like(POSITIONS)
  lengths = jnp.full_like(POSITIONS, length)
  chunks = Chunks(like, like, lengths, jnp.asarray(POSITIONS), like)
  pages = chunks_mosaic_gpu._pages(chunks, window)
  return [[*map(int, x)] for x in zip(*pages, strict=True)]


@pytest.mark.parametrize("window", [None, 1, 40, 64, 65, 127, 128, 200, 5000])
def test_pages_without_a_mask_are_those_that_all_queries_see_whole(window):
  for position, (first, whole, stop) in zip(POSITIONS, visited(window, CHUNK)):
    query = position + np.arange(CHUNK)[:, None]
    key = np.arange(position + CHUNK)[None]
    seen = key <= query
    if window is not None:
      seen &= key > query - window
    pages = seen.reshape(CHUNK, -1, CHUNK)
    some, every = pages.any(axis=(0, 2)), pages.all(axis=(0, 2))
    assert np.flatnonzero(some).tolist() == [*range(first, stop)]
    assert np.flatnonzero(every).tolist() == [*range(whole, stop - 1)]


@pytest.mark.parametrize("window", [None, 40, 200])
def test_which_pages_are_masked_does_not_depend_on_the_length(window):
  assert visited(window, 1) == visited(window, 7) == visited(window, CHUNK)


@pytest.mark.parametrize("window", [None, 40, 200])
def test_an_inactive_chunk_visits_none(window):
  assert all(stop <= first for first, _, stop in visited(window, 0))


@pytest.mark.parametrize(("width", "in_place"), [(128, 0), (256, 4)])
def test_wide_heads_add_in_place_behind_their_wait(width, in_place):
  q = jnp.zeros((2, CHUNK, 2, width), jnp.bfloat16)
  k, pool = (jnp.zeros((n, CHUNK, 1, width), jnp.bfloat16) for n in (2, 9))
  table = jnp.zeros((2, BLOCK_PAGES), jnp.int32)
  attend = functools.partial(lattice_attention, implementation="mosaic_gpu")
  with traced_for(HOPPER):
    traced = jax.make_jaxpr(attend)(
      q, k, k, pool, pool, chunks_of([], 2, CHUNK), table
    )
  sums = re.findall(r"(\w+):f32\[64,64\] = run_state\[", str(traced))
  # Of the pages without a mask, and of the last one.
  assert len(sums) == 2 * in_place
  for name in sums:
    assert f"= optimization_barrier {name}\n" in str(traced)
