import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.placement import OverlapHistogram, observe


def test_decays_then_counts():
  rng = np.random.default_rng(0)
  histogram, expected = OverlapHistogram.create(8), np.zeros(8)
  for depth in rng.integers(0, 10, 50):
    histogram = observe(histogram, int(depth), decay=0.9)
    expected *= 0.9
    expected[min(depth, 7)] += 1
  np.testing.assert_allclose(histogram.counts, expected, rtol=1e-5)
  np.testing.assert_allclose(
    histogram.weights(), expected / expected.sum(), rtol=1e-5
  )
  assert int(histogram.observations) == 50


def test_depths_beyond_the_last_bin_count_in_it():
  empty = OverlapHistogram.create(300)
  with jax.enable_x64(True):
    wide = jnp.asarray(2**40, jnp.int64)
  depths = [300, 2**31, 2**40, jnp.uint32(2**32 - 1), wide]
  for depth in depths:
    assert int(jnp.argmax(observe(empty, depth).counts)) == 299
  # Its type does not hold the last bin.
  assert int(jnp.argmax(observe(empty, jnp.uint8(255)).counts)) == 255
  traced = jax.jit(lambda d: observe(empty, d).counts)
  assert int(jnp.argmax(traced(jnp.uint32(2**32 - 1)))) == 299
  assert int(jnp.argmax(traced(jnp.int32(-5)))) == 0


def test_is_pure():
  empty = OverlapHistogram.create(3)
  observe(empty, 1)
  assert empty.counts.tolist() == [0.0, 0.0, 0.0]
  assert empty.weights().tolist() == [0.0, 0.0, 0.0]


def test_as_a_scanned_carry_of_many_prefixes():
  """`jit`, `vmap` and `scan` see a pytree."""
  depths = jnp.asarray([[0, 1, 1], [2, 2, 2]], jnp.int32)

  @jax.jit
  @jax.vmap
  def run(row):
    def step(histogram, depth):
      return observe(histogram, depth, 1.0), None

    return jax.lax.scan(step, OverlapHistogram.create(3), row)[0]

  histograms = run(depths)
  assert histograms.counts.tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
  assert histograms.observations.tolist() == [3, 3]
  assert histograms.weights().shape == (2, 3)


def test_smoothing_adds_a_uniform_prior():
  histogram = observe(OverlapHistogram.create(4), 2).smoothed(1.0)
  assert histogram.counts.tolist() == [0.25, 0.25, 1.25, 0.25]


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match="depths must be at least 2, got 1"):
    OverlapHistogram.create(1)
  histogram = OverlapHistogram.create(2)
  with pytest.raises(ValueError, match="depth must not be negative, got -1"):
    observe(histogram, -1)
  for decay in (0.0, 1.5, float("nan")):
    with pytest.raises(ValueError, match="decay must be in"):
      observe(histogram, 1, decay)
  for pseudo_count in (-1.0, float("inf")):
    with pytest.raises(ValueError, match="pseudo_count must be finite"):
      histogram.smoothed(pseudo_count)
