"""Whether a row's bits depend on how many rows stand beside it.

    python -m benchmarks.device.rows --output=FILE.json

What a layer does to all rows of a program at once is XLA's: wide products,
norms, activations. Its rows must not depend on their number, or a prompt cut
otherwise has other bits. Rows of every size are compared with the first rows of
the largest: in programs compiled as the library compiles a model's, or, with
`--nochosen`, as XLA would.
"""

import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.command_line import one_sentence, whole_numbers, writable
from benchmarks.record import write_result
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.layers.dense import dense
from sparse_prefix_jax.layers.normalization import Norm, residual_norm
from sparse_prefix_jax.runtime.compiling import Program

_SIZES = flags.DEFINE_list(
  "sizes", ["2", "4", "16", "64", "128", "256", "512", "1024"], "Rows."
)
_WIDTHS = flags.DEFINE_list("widths", ["1024", "3584"], "Of the model.")
_CHOSEN = flags.DEFINE_bool("chosen", True, "As the library compiles.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def _normal(seed: int, *shape: int, dtype: str) -> jax.Array:
  random = np.random.default_rng(seed)
  return jnp.asarray(random.standard_normal(shape, np.float32), dtype)


_Rows: TypeAlias = Callable[[Any, jax.Array], jax.Array]
"""What is done to rows [m width], given a weight."""


def _programs(width: int, dtype: str) -> dict[str, tuple[_Rows, Any]]:
  """What is done to rows, and with which weight, by name."""
  norm = Norm(centred=True)

  def product(weight: Any, x: jax.Array) -> jax.Array:
    return dense(x, weight, "highest")

  def normed(weight: Any, x: jax.Array) -> jax.Array:
    # [k c d], as prefill has it: a decode step has one number of rows.
    return residual_norm(x[:, None], weight, norm)[:, 0]

  def silu(_: Any, x: jax.Array) -> jax.Array:
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)

  products = {
    f"product with {columns} columns": (
      product,
      _normal(columns, width, columns, dtype=dtype),
    )
    for columns in sorted({min(width, 4096), 2048, 512})
  }
  scale = _normal(1, width, dtype=dtype)
  return {**products, "residual norm": (normed, scale), "silu": (silu, None)}


def _row(name: str, run: _Rows, weight: Any, x: jax.Array) -> dict[str, Any]:
  """Sizes whose bits differ from those of all rows, and what all rows cost."""
  compiled = Program(run) if _CHOSEN.value else jax.jit(run)
  expected = np.asarray(compiled(weight, x))
  sizes = whole_numbers(_SIZES, least=2, most=len(x))
  differing = {
    size: differing_bits(
      np.asarray(compiled(weight, x[:size])), expected[:size]
    )
    for size in sizes
  }
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready([compiled(weight, x) for _ in range(10)])
    times.append((time.perf_counter() - start) / 10)
  return {
    "program": name,
    "dtype": str(x.dtype),
    "rows": x.shape[0],
    "width": x.shape[1],
    "differing_bits": {n: bits for n, bits in differing.items() if bits},
    "seconds": statistics.median(times),
    "digest": hashlib.sha256(expected.tobytes()).hexdigest()[:16],
  }


def main(argv: list[str]) -> None:
  """Compares, prints, and keeps the result where it was asked for."""
  with one_sentence(argv):
    largest = 2 * max(whole_numbers(_SIZES, least=2))
    widths = whole_numbers(_WIDTHS, multiple_of=64)
    writable(_OUTPUT)
  rows = []
  for width in widths:
    for dtype in ("float32", "bfloat16"):
      x = _normal(0, largest, width, dtype=dtype)
      for name, (run, weight) in _programs(width, dtype).items():
        rows.append(_row(name, run, weight, x))
        print(
          f"{dtype:9} {width:5} {name:26} {1e6 * rows[-1]['seconds']:8.1f} us "
          f"{rows[-1]['differing_bits'] or 'equal'}",
          flush=True,
        )
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
