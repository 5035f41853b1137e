"""A scheduler's step on a device: what the device works, and all of it.

    python -m benchmarks.device.scheduler_step --output=FILE.json

Where a step takes much longer than its kernels, the host is what is slow:
Python, launches, and each wait for what the device has not computed yet.
"""

import statistics
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import command_line
from benchmarks.device.kernel_times import kernel_seconds, told
from benchmarks.record import write_result
from benchmarks.sides import OurAnswers
from sparse_prefix_jax import HybridDecoder

_MODEL = flags.DEFINE_string("model", "qwen3_5_0_8b_group", "Preset.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "bfloat16", ["float32", "bfloat16"], "Of it."
)
_ROWS = flags.DEFINE_integer("rows", 16, "Sequences.", 2)
_CONTEXT = flags.DEFINE_integer("context", 2048, "Tokens before.", 64)
_STEPS = flags.DEFINE_integer("steps", 40, "Timed steps.", 2)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_WARM, _PROFILED = 10, 5


def _answers() -> OurAnswers:
  """Sequences of one prompt that have begun to answer."""
  config = command_line.model(_MODEL).replace(
    dtype=_DTYPE.value, decode_rows=_ROWS.value, ladder=(4,)
  )
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  prompt = np.arange(_CONTEXT.value, dtype=np.int32) % config.vocab_size
  steps = _WARM + _STEPS.value + _PROFILED
  return OurAnswers(model, prompt, _ROWS.value, steps)


def _measured(answers: OurAnswers) -> dict[str, Any]:
  """Seconds of a step, of its kernels, and which take the most of them."""
  answers.run(_WARM)
  times = answers.run(_STEPS.value)

  def profiled() -> Any:
    answers.run(_PROFILED)
    return answers.cache.pools

  kernels = kernel_seconds(profiled)
  return {"seconds": statistics.median(times), **told(kernels, _PROFILED)}


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.model(_MODEL)
    command_line.writable(_OUTPUT)
  found = _measured(_answers())
  print(
    f"{_ROWS.value} sequences: {1e3 * found['seconds']:.2f} ms a step, "
    f"{found['kernels']:.0f} kernels of {1e3 * found['kernel_seconds']:.2f} ms"
  )
  if _OUTPUT.value:
    write_result(
      _OUTPUT.value,
      {
        "device": jax.devices()[0].device_kind,
        "model": _MODEL.value,
        "dtype": _DTYPE.value,
        "rows": _ROWS.value,
        "context": _CONTEXT.value,
        **found,
      },
    )


if __name__ == "__main__":
  app.run(main)
