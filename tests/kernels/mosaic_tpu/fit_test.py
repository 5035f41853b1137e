"""Sizes of grid steps on TPU: by shape, and by how many cores share a grid."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.implementations import Device
from sparse_prefix_jax.kernels.mosaic_tpu import fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config

ONE_CORE, TWO_CORES, WIDE_UNITS = (
  Device("tpu", f"TPU {x}") for x in ("v5 lite", "v5p", "v6 lite")
)


def heads(count, width):
  return jnp.zeros((1, 1, count, width))


@pytest.mark.parametrize(
  ("device", "key_heads", "value_heads", "width", "block"),
  [
    (ONE_CORE, 16, 16, 128, 8),
    (ONE_CORE, 16, 32, 128, 8),
    (ONE_CORE, 1, 48, 128, 8),
    (ONE_CORE, 5, 15, 128, 1),
    (ONE_CORE, 16, 16, 256, 4),
    (WIDE_UNITS, 16, 16, 256, 4),
    (ONE_CORE, 6, 6, 64, 2),
    (ONE_CORE, 3, 3, 64, 1),
    (TWO_CORES, 4, 4, 128, 2),
    (TWO_CORES, 2, 4, 128, 2),
    (TWO_CORES, 6, 6, 128, 2),
    (TWO_CORES, 16, 16, 128, 8),
    (TWO_CORES, 1, 1, 128, 1),
  ],
)
def test_heads_per_step(device, key_heads, value_heads, width, block):
  k, v = heads(key_heads, width), heads(value_heads, width)
  assert fit.heads_per_step(device, k, v) == block


def test_long_chunks_leave_room_for_fewer_heads():
  sizes = [64, 128, 192, 256, 512]
  found = []
  for size in sizes:
    x = jnp.zeros((1, size, 8, 128))
    found.append(fit.heads_per_step(ONE_CORE, x, x))
    taken = fit.step_bytes(found[-1], x, x)
    assert (taken <= fit._VMEM_BYTES) == (size < 512)
  assert found == [8, 4, 2, 1, 1]


@pytest.mark.parametrize(
  ("device", "channels", "block"),
  [
    (ONE_CORE, 2048, 2048),
    (ONE_CORE, 2560, 512),
    (ONE_CORE, 64, 64),
    (TWO_CORES, 2048, 1024),
    (TWO_CORES, 128, 128),
    (TWO_CORES, 8192, 2048),
  ],
)
def test_channels_per_step(device, channels, block):
  x = jnp.zeros((1, 64, channels))
  assert fit.channels_per_step(device, x, 2) == block


def test_long_chunks_leave_room_for_fewer_channels():
  found = []
  for size in (64, 256, 384, 1024):
    x = jnp.zeros((1, size, 2048))
    found.append(fit.channels_per_step(ONE_CORE, x, 2))
    assert fit.refusal_of_channels(Config(block=found[-1]), x, 2) is None
  assert found == [2048, 2048, 1024, 512]


@pytest.mark.parametrize(
  ("block", "reason"),
  [
    (0, "block 0 is not a multiple of 128 dividing 2048"),
    (-128, "block -128 is not a multiple of 128"),
    (192, "block 192 is not a multiple of 128"),
    (2048, "2048 channels of a chunk of 512 tokens take about 25165824 bytes"),
  ],
)
def test_channels_that_do_not_fit_are_refused(block, reason):
  x = jnp.zeros((1, 512, 2048))
  told = fit.refusal_of_channels(Config(block=block), x, 2)
  assert told is not None
  assert told.startswith(reason)


@pytest.mark.parametrize(
  ("rows", "pages", "fits"),
  [
    (1, 240_000, True),
    (3, 80_000, False),
    (5, 48_000, False),
    (1900, 8, True),
    (2048, 8, False),
  ],
)
def test_rows_of_scalars_are_whole_tiles(rows, pages, fits):
  taken = fit.scalar_bytes(jnp.zeros((rows, pages), jnp.int32))
  assert (taken <= fit.SCALAR_BYTES) == fits
