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
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.command_line import one_sentence, whole_numbers, writable
from benchmarks.device.on_rows import OnRows, normal, on_rows
from benchmarks.record import write_result
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.runtime.compiling import Program

_SIZES = flags.DEFINE_list(
  "sizes", ["2", "4", "16", "64", "128", "256", "512", "1024"], "Rows."
)
_WIDTHS = flags.DEFINE_list("widths", ["1024", "3584"], "Of the model.")
_CHOSEN = flags.DEFINE_bool("chosen", True, "As the library compiles.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def _row(name: str, run: OnRows, weight: Any, x: jax.Array) -> dict[str, Any]:
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
      x = normal(0, largest, width, dtype=dtype)
      for name, (run, weight) in on_rows(width, dtype).items():
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
