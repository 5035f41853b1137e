"""What capturing states costs: the same prefill with and without, in turn.

    python -m benchmarks.capture --output=benchmarks/results/capture.json

The 0.8B layer group over 4,096 tokens, with 0 and with 30 states captured in
the only pass. The two are run in turn, pair by pair; the figure is the median
of the pairs' ratios. (The paper's code makes a second prefill for them.)
"""

import statistics
import time

import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import trange

from benchmarks import command_line, record
from sparse_prefix_jax import HybridDecoder, PrefixCache, prefill
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy

_PRESET = flags.DEFINE_string("preset", "qwen3_5_0_8b_group", "Which model.")
_TOKENS = flags.DEFINE_integer("tokens", 4096, "Length of the prompt.", 64)
_STATES = flags.DEFINE_integer("states", 30, "States to capture.", 1)
_PAIRS = flags.DEFINE_integer("pairs", 7, "Timed pairs.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def _seconds(model, cache, prompt, capture) -> float:
  start = time.perf_counter()
  out = prefill(model, cache, [prompt], capture=[capture])
  seconds = time.perf_counter() - start
  assert out.reports[0].captured == tuple(capture)
  cache.release(out.sequences)
  cache.flush()
  return seconds


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    config = command_line.model(_PRESET)
    chunk, longest = config.numerics.chunk, config.numerics.max_length
    chunks = command_line.at_most(_TOKENS, longest) // chunk
    command_line.at_most(_STATES, chunks)
    command_line.writable(_OUTPUT)
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  room = (_STATES.value + 4) * state_bytes(config), chunks * page_bytes(config)
  cache = PrefixCache(
    model,
    capacity=2 * sum(room),
    state_share=room[0] / sum(room),
    placement=PlacementPolicy("last", chunk=config.numerics.chunk),
  )
  prompt = np.random.default_rng(0).integers(
    0, config.vocab_size, _TOKENS.value
  )
  spaced = np.linspace(1, chunks, _STATES.value).round().astype(int)
  capture = [int(chunk) * config.numerics.chunk for chunk in spaced]
  pairs = []
  for repeat in trange(_PAIRS.value + 1, unit="pair"):
    without = _seconds(model, cache, prompt, [])
    with_states = _seconds(model, cache, prompt, capture)
    if repeat:  # the first pair compiles
      pairs.append((without, with_states))
  ratios = [with_states / without for without, with_states in pairs]
  result = {
    "preset": _PRESET.value,
    "tokens": _TOKENS.value,
    "states": _STATES.value,
    "median_seconds_without": statistics.median(p[0] for p in pairs),
    "median_seconds_with": statistics.median(p[1] for p in pairs),
    "median_ratio": statistics.median(ratios),
    "ratios": ratios,
  }
  print(
    f"{_TOKENS.value} tokens: {result['median_seconds_without']:.2f} s plain, "
    f"{result['median_seconds_with']:.2f} s with {_STATES.value} states; "
    f"median ratio {result['median_ratio']:.3f} "
    f"({min(ratios):.3f} to {max(ratios):.3f})"
  )
  if _OUTPUT.value:
    record.write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
