import jax
import jax.numpy as jnp
import pytest

from benchmarks.device import copying, kernel_times


def test_the_profiler_tells_how_often_what_ran_and_how_long():
  product = jax.jit(lambda x: x @ x)
  x = jnp.ones((256, 256))
  jax.block_until_ready(product(x))
  once = kernel_times.kernel_seconds(lambda: product(x))
  thrice = kernel_times.kernel_seconds(lambda: [product(x) for _ in range(3)])
  assert once.keys() == thrice.keys()
  assert [len(x) for x in thrice.values()] == [3] * len(thrice)
  assert all(seconds > 0 for own in once.values() for seconds in own)


def test_nothing_on_the_device_is_told():
  with pytest.raises(RuntimeError, match="recorded no kernel"):
    kernel_times.kernel_seconds(lambda: None)


def test_a_copy_has_a_rate():
  assert copying.bandwidth() > 1e6
