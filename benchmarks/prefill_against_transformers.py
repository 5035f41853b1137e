"""Prefill of the 0.8B layer group, against transformers on PyTorch.

    python -m benchmarks.prefill_against_transformers --output=FILE.json
    python -m benchmarks.prefill_against_transformers --profile

One process, the same weights, the same threads, runs in turn: for every length
ours, theirs, ours, theirs, ...; medians. llama.cpp takes its turn too, where
its Python binding is installed. Then what only a cache can do: resumed
from half, and the time to first token of short suffixes on long prefixes. The
peak of memory is that of a process which does nothing else.

`--profile` prints where our time goes, per layer kind and stage, and needs no
PyTorch; the comparison needs the extra `parity`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from benchmarks import command_line, layer_profile
from benchmarks.latency import Case, LatencyMeter
from benchmarks.record import write_result
from benchmarks.sides import OtherModel, OurPrompts, in_turn, other_models
from sparse_prefix_jax import HybridDecoder, load_pretrained, preset

_LENGTHS = flags.DEFINE_list(
  "lengths", ["1024", "2048", "4096", "8192"], "Prompts in tokens."
)
_RESTORED = flags.DEFINE_list(
  "restored", ["4096", "16384"], "Prefixes for short suffixes, in tokens."
)
_SUFFIXES = flags.DEFINE_list("suffixes", ["32", "128", "512"], "In tokens.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.", 1)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count() or 1, "Theirs.", 1)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of both sides."
)
_DEVICE = flags.DEFINE_string("device", "cpu", "Theirs, as PyTorch names it.")
_COLD = flags.DEFINE_bool("cold", False, "Only the comparison of prompts.")
_PROFILE = flags.DEFINE_bool("profile", False, "Only our profile.")
_PROFILE_TOKENS = flags.DEFINE_integer("profile_tokens", 4096, "Its prompt.", 1)
_ALONE = flags.DEFINE_enum(
  "alone", None, ["ours", "theirs"], "Only the peak of memory of one side."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Used with --alone.")
_LADDER = flags.DEFINE_list(
  "ladder", None, "Our rungs, in chunks; the model's own if not given."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

GOALS = {1024: 1.2, 2048: 1.3, 4096: 1.5, 8192: 1.5}
GOAL_FROM_HALF = {4096: 1.85}


def _seconds(run: Callable[[], object]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def _prompt(length: int) -> np.ndarray:
  return np.random.default_rng(length).integers(0, 512, length)


def _checkpoint_models(
  directory: str, longest: int
) -> tuple[OurPrompts, dict[str, OtherModel]]:
  """All sides around one checkpoint: ours, and the others by name."""
  others = other_models(
    directory,
    threads=int(_THREADS.value or 1),
    dtype=str(_DTYPE.value),
    device=str(_DEVICE.value),
    longest=longest,
  )
  model, _ = load_pretrained(
    directory, dtype=_DTYPE.value, **command_line.rungs(_LADDER)
  )
  return OurPrompts(model, longest), others


def _cold(
  ours: OurPrompts, others: dict[str, OtherModel], length: int
) -> dict[str, Any]:
  """All sides over one prompt, in turn."""
  tokens = _prompt(length)
  sides: dict[str, Callable[[], np.ndarray]] = {
    "ours": lambda: ours.prefill(tokens)
  }
  for name, side in others.items():
    sides[name] = lambda side=side: side.prefill(tokens[None])[0][0]
  logits = {name: run() for name, run in sides.items()}  # compiles, warms up
  times = in_turn(sides, _REPEATS.value)
  medians = {name: statistics.median(times[name]) for name in sides}
  mine, other = medians["ours"], medians["transformers"]
  products = 2 * _product_weights(ours.model) * length
  row = {
    "tokens": length,
    "seconds": times,
    **{f"{name}_median_seconds": median for name, median in medians.items()},
    "times_as_fast": other / mine,
    "goal": GOALS.get(length),
    "share_of_products": products / _product_rate(1024) / mine,
    "max_logit_difference": max(
      float(np.abs(logits["ours"] - logits[name]).max()) for name in others
    ),
  }
  told = ", ".join(f"{name} {median:.2f} s" for name, median in medians.items())
  print(
    f"{length:6d} tokens: {told}; {other / mine:.2f} times as fast as"
    f" transformers; matrix products alone {row['share_of_products']:.0%} of"
    f" ours; logits within {row['max_logit_difference']:.1e}"
  )
  return row


def _product_weights(model: HybridDecoder) -> int:
  """Weights of the wide products, those of the head not counted."""
  leaves = [
    leaf
    for leaf in jax.tree.leaves(model.branches)
    if leaf.ndim == 2 and min(leaf.shape) >= 64
  ]
  return sum(leaf.size for leaf in leaves)


def _product_rate(rows: int) -> float:
  """Floating point operations a second of one wide product, now."""
  x, w = jnp.ones((rows, 1024)), jnp.ones((1024, 3584))
  product = jax.jit(lambda x, w: jnp.matmul(x, w, precision="highest"))
  jax.block_until_ready(product(x, w))
  times = [
    _seconds(lambda: jax.block_until_ready(product(x, w))) for _ in range(15)
  ]
  return 2 * rows * w.size / statistics.median(times)


def _cached(lengths: list[int], pairs: list[tuple[int, int]]) -> dict[str, Any]:
  """What a cache saves: from half, and short suffixes on long prefixes."""
  halves = {n: (Case(n, 0, 0), Case(n, n // 2, 0)) for n in lengths}
  suffixes = {(r, s): Case(r + s, r, 0) for r, s in pairs}
  cases = [case for pair in halves.values() for case in pair]
  meter = LatencyMeter(
    preset("qwen3_5_0_8b_group"), [*cases, *suffixes.values()]
  )
  from_half, first_token = [], []
  for length, pair in halves.items():
    rounds = [[meter.seconds(c) for c in pair] for _ in range(_REPEATS.value)]
    cold, resumed = (statistics.median(column) for column in zip(*rounds))
    print(f"{length:6d} tokens from half: {cold / resumed:.2f} times as fast")
    from_half.append(
      {
        "tokens": length,
        "cold_seconds": cold,
        "resumed_seconds": resumed,
        "times_as_fast": cold / resumed,
        "goal": GOAL_FROM_HALF.get(length),
      }
    )
  for (restored, suffix), case in suffixes.items():
    seconds = statistics.median(
      meter.seconds(case) for _ in range(_REPEATS.value)
    )
    print(f"{suffix:4d} tokens on {restored} restored: {1e3 * seconds:.0f} ms")
    first_token.append(
      {"restored": restored, "suffix": suffix, "seconds": seconds}
    )
  return {"resumed_from_half": from_half, "first_token": first_token}


def _peak(side: str, directory: str, length: int) -> float:
  """Peak memory in GiB of a process with one side and one prompt."""
  command = [
    *(sys.executable, "-m", "benchmarks.prefill_against_transformers"),
    *(f"--alone={side}", f"--checkpoint={directory}", f"--lengths={length}"),
    f"--threads={int(_THREADS.value or 1)}",
  ]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def _peaks(directory: str, lengths: list[int]) -> dict[int, Any]:
  """Peaks of both sides, each in a process of its own."""
  return {
    length: {
      side: _peak(side, directory, length) for side in ("ours", "theirs")
    }
    for length in lengths
  }


def _run_alone(directory: str, length: int) -> None:
  """One prefill by one side; prints the peak of this process in GiB."""
  if _ALONE.value == "ours":
    OurPrompts(load_pretrained(directory)[0], length).prefill(_prompt(length))
  else:
    from benchmarks.transformers_model import Transformers

    Transformers(directory, int(_THREADS.value or 1)).prefill(
      _prompt(length)[None]
    )
  # Not `ru_maxrss`: a child begins with its parent's there.
  status = Path("/proc/self/status").read_text(encoding="ascii")
  peak = next(line for line in status.splitlines() if "VmHWM" in line)
  print(json.dumps(int(peak.split()[1]) / 2**20))


def _print_profile(tokens: int) -> dict[str, Any]:
  """Where our time goes, of one prompt of whole groups."""
  config = preset("qwen3_5_0_8b_group")
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  ours, prompt = OurPrompts(model, tokens), _prompt(tokens)
  ours.prefill(prompt)
  shares = layer_profile.profile(
    ours.cache,
    ours.cache.frozen,
    lambda: ours.prefill(prompt),
  )
  recurrent = layer_profile.recurrent_share(shares)
  print(layer_profile.table(shares))
  print(f"recurrence with convolution and heads: {recurrent:.1%} (goal 25 %)")
  return {
    "tokens": tokens,
    "milliseconds": {"/".join(k): 1e3 * s for k, s in shares.items()},
    "recurrent_share": recurrent,
  }


def _asked() -> tuple[list[int], list[int], list[int]]:
  """Lengths, restored positions and suffixes, once every flag fits.

  Raises:
    ValueError: A flag that does not fit.
    OSError: An output that cannot be written.
    ImportError: The comparison's packages are not installed.
  """
  config = preset("qwen3_5_0_8b_group")
  group = max(config.numerics.ladder) * config.numerics.chunk
  if command_line.at_most(_PROFILE_TOKENS, config.numerics.max_length) % group:
    raise ValueError(
      f"--profile_tokens is {_PROFILE_TOKENS.value}; it must be a multiple of"
      f" {group}"
    )
  if (_ALONE.value is None) != (_CHECKPOINT.value is None):
    raise ValueError("--alone and --checkpoint go together")
  lengths = command_line.whole_numbers(
    _LENGTHS,
    least=2 * config.numerics.chunk,
    most=config.numerics.max_length,
    multiple_of=2 * config.numerics.chunk,
  )
  suffixes = command_line.whole_numbers(
    _SUFFIXES, most=config.numerics.max_length - 64
  )
  restored = command_line.whole_numbers(
    _RESTORED,
    least=config.numerics.chunk,
    most=config.numerics.max_length - max(suffixes),
    multiple_of=config.numerics.chunk,
  )
  command_line.rungs(_LADDER)
  command_line.writable(_OUTPUT)
  if not _PROFILE.value and _ALONE.value != "ours":
    command_line.installed("torch", "transformers")
  return lengths, restored, suffixes


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    lengths, restored, suffixes = _asked()
  if _ALONE.value:
    _run_alone(str(_CHECKPOINT.value), lengths[0])
    return
  result: dict[str, Any] = {"dtype": _DTYPE.value, "device": _DEVICE.value}
  if not _COLD.value:
    result["profile"] = _print_profile(_PROFILE_TOKENS.value)
  if not _PROFILE.value:
    with tempfile.TemporaryDirectory() as directory:
      ours, others = _checkpoint_models(directory, max(lengths))
      result["threads"] = int(_THREADS.value or 1)
      result["cold"] = [_cold(ours, others, n) for n in tqdm(lengths)]
      if not _COLD.value:
        result["peak_gib"] = _peaks(directory, lengths)
    if not _COLD.value:
      print("peak GiB:", result["peak_gib"])
      pairs = [(r, s) for r in restored for s in suffixes]
      result |= _cached(lengths, pairs)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
