"""The contract on this device: which layers of a model break it, if any.

python -m benchmarks.device.contract --model=demo --dtype=bfloat16
"""

import time

import jax
from absl import app, flags
from flax import nnx

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax import HybridDecoder
from sparse_prefix_jax.contract import check

_MODEL = flags.DEFINE_string("model", "tiny", "Preset.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of it."
)
_LADDER = flags.DEFINE_list("ladder", ["1", "2", "4"], "Rungs, in chunks.")
_LIVES = flags.DEFINE_integer("lives", 1, "Random lives of a cache.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def main(argv: list[str]) -> None:
  """Checks, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    ladder = tuple(command_line.whole_numbers(_LADDER, ascending=1))
    config = command_line.model(_MODEL).replace(
      dtype=_DTYPE.value, ladder=ladder
    )
    command_line.writable(_OUTPUT)
  start = time.perf_counter()
  found = check(HybridDecoder(config, rngs=nnx.Rngs(0)), lives=_LIVES.value)
  result = {
    "device": jax.devices()[0].device_kind,
    "model": _MODEL.value,
    "dtype": _DTYPE.value,
    "ladder": ladder,
    "lives": _LIVES.value,
    "findings": [finding._asdict() for finding in found],
    "seconds": time.perf_counter() - start,
  }
  for finding in found:
    print(finding)
  print(f"{_MODEL.value} {_DTYPE.value}: {len(found)} findings")
  if _OUTPUT.value:
    write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
