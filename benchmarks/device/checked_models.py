"""Models whose contract is checked one after another, and what was found."""

import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig
from sparse_prefix_jax.contract import check


def checked_models(
  configs: Mapping[str, ModelConfig], lives: int
) -> Iterator[dict[str, Any]]:
  """Checks each, of random weights; an error in one does not stop the rest.

  Args:
    configs: By name.
    lives: Random lives of a cache, for each.

  Yields:
    What was checked and found; `error` where that came to no end, told in full
    on the way, and then no findings.
  """
  for name, config in configs.items():
    start = time.perf_counter()
    result: dict[str, Any] = {
      "device": jax.devices()[0].device_kind,
      "model": name,
      "dtype": config.numerics.dtype,
      "ladder": config.numerics.ladder,
      "lives": lives,
    }
    try:
      found = check(HybridDecoder(config, rngs=nnx.Rngs(0)), lives=lives)
      result["findings"] = [finding._asdict() for finding in found]
    except Exception as error:  # whatever it is, the other models are checked
      traceback.print_exc()
      told = " ".join(str(error).split())
      result["error"] = f"{type(error).__name__}: {told}"[:400]
    result["seconds"] = time.perf_counter() - start
    # Programs of one model are of no use to the next, and take memory.
    jax.clear_caches()
    yield result
