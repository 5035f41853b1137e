"""Prefill of the 0.8B layer group, against transformers on PyTorch.

    python -m benchmarks.prefill_against_transformers --output=FILE.json

One process, the same weights, the same threads, runs in turn: for every length
ours, theirs, ours, theirs, ...; medians. Then what only a cache can do: resumed
from half, and the time to first token of short suffixes on long prefixes.
Needs the extra `parity` (torch, transformers).
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import record

_LENGTHS = flags.DEFINE_list(
  "lengths", ["1024", "2048", "4096", "8192"], "Prompts in tokens."
)
_RESTORED = flags.DEFINE_list(
  "restored", ["4096", "16384"], "Prefixes for short suffixes, in tokens."
)
_SUFFIXES = flags.DEFINE_list("suffixes", ["32", "128", "512"], "In tokens.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.", 1)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count(), "For both.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_HUGGING_FACE = {
  "vocab_size": 512,
  "hidden_size": 1024,
  "intermediate_size": 3584,
  "num_hidden_layers": 4,
  "num_attention_heads": 8,
  "num_key_value_heads": 2,
  "head_dim": 256,
  "linear_num_key_heads": 16,
  "linear_num_value_heads": 16,
  "tie_word_embeddings": True,
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "mrope_section": [11, 11, 10],
  },
}


def _seconds(run: Callable[[], object]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def _in_turn(first: Callable, second: Callable) -> tuple[float, float]:
  """Medians of both, run one after the other."""
  first(), second()  # compile, warm up
  pairs = [(_seconds(first), _seconds(second)) for _ in range(_REPEATS.value)]
  return tuple(statistics.median(column) for column in zip(*pairs))


def _peak_gib() -> float:
  """Peak memory of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Ours:
  """The library over one cache that stores nothing unless told."""

  def __init__(self, directory: str, longest: int) -> None:
    from sparse_prefix_jax import PrefixCache, load_pretrained
    from sparse_prefix_jax.models.sizes import page_bytes, state_bytes

    self.model, self.config = load_pretrained(directory)
    pages = 2 * longest // self.config.chunk * page_bytes(self.config)
    states = 16 * state_bytes(self.config)
    self.cache = PrefixCache(
      self.model,
      capacity=pages + states,
      state_share=states / (pages + states),
    )

  def cold(self, tokens: np.ndarray) -> np.ndarray:
    """Logits of the last token; nothing is stored before or after."""
    from sparse_prefix_jax import prefill

    self.cache.index.clear()
    out = prefill(self.model, self.cache, [tokens], capture=[[]])
    self.cache.release(out.sequences)
    return out.logits[0]

  def store(self, tokens: np.ndarray) -> None:
    """A state at the end of these tokens, and nothing else, is stored."""
    from sparse_prefix_jax import prefill

    self.cache.index.clear()
    out = prefill(self.model, self.cache, [tokens], capture=[[tokens.size]])
    self.cache.release(out.sequences)

  def resumed(self, tokens: np.ndarray, at: int) -> np.ndarray:
    """Logits of the last token, from the stored state at `at`."""
    from sparse_prefix_jax import prefill

    out = prefill(self.model, self.cache, [tokens], capture=[[]])
    assert out.reports[0].resumed == at
    self.cache.release(out.sequences)
    for entry in self.cache.index.entries[1:]:
      self.cache.index.evict(entry)
    return out.logits[0]


def _make_theirs(directory: str):
  """A random checkpoint and its model, as transformers makes them."""
  import torch
  import transformers

  torch.set_num_threads(_THREADS.value)
  torch.manual_seed(0)
  config = transformers.Qwen3_5TextConfig(**_HUGGING_FACE)
  model = transformers.Qwen3_5ForCausalLM(config).eval()
  model.save_pretrained(directory)

  def run(tokens: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      ids = torch.tensor(tokens)[None]
      out = model(ids, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1].numpy()

  return run


def _against(ours: Ours, theirs: Callable, length: int) -> dict:
  tokens = np.random.default_rng(length).integers(0, 512, length)
  mine, other = _in_turn(lambda: ours.cold(tokens), lambda: theirs(tokens))
  difference = float(np.abs(ours.cold(tokens) - theirs(tokens)).max())
  row = {
    "tokens": length,
    "ours_seconds": mine,
    "transformers_seconds": other,
    "times_as_fast": other / mine,
    "max_logit_difference": difference,
    "peak_gib_so_far": _peak_gib(),
  }
  print(
    f"{length:6d} tokens: ours {mine:6.2f} s, transformers {other:6.2f} s, "
    f"{other / mine:.2f} times as fast"
  )
  return row


def _resumed_from_half(ours: Ours, length: int) -> dict:
  tokens = np.random.default_rng(length).integers(0, 512, length)
  half = length // 2

  def resumed() -> None:
    ours.resumed(tokens, half)

  cold, warm = [], []
  for repeat in range(_REPEATS.value + 1):
    seconds = _seconds(lambda: ours.cold(tokens))
    ours.store(tokens[:half])
    resumed_seconds = _seconds(resumed)
    if repeat:
      cold.append(seconds)
      warm.append(resumed_seconds)
  ratio = statistics.median(cold) / statistics.median(warm)
  print(f"{length:6d} tokens resumed from half: {ratio:.2f} times as fast")
  return {"tokens": length, "times_as_fast_as_cold": ratio}


def _first_token(ours: Ours, restored: int, suffix: int) -> dict:
  tokens = np.random.default_rng(0).integers(0, 512, restored + suffix)
  ours.store(tokens[:restored])
  ours.resumed(tokens, restored)
  seconds = statistics.median(
    _seconds(lambda: ours.resumed(tokens, restored))
    for _ in range(_REPEATS.value)
  )
  print(f"{suffix:4d} tokens on {restored} restored: {1e3 * seconds:.0f} ms")
  return {"restored": restored, "suffix": suffix, "seconds": seconds}


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  del argv
  lengths, restored, suffixes = (
    [int(text) for text in flag.value]
    for flag in (_LENGTHS, _RESTORED, _SUFFIXES)
  )
  with tempfile.TemporaryDirectory() as directory:
    theirs = _make_theirs(directory)
    longest = max([*lengths, *(r + s for r in restored for s in suffixes)])
    ours = Ours(directory, longest)
  rows = [_against(ours, theirs, length) for length in tqdm(lengths)]
  half = [_resumed_from_half(ours, length) for length in lengths]
  first = [_first_token(ours, r, s) for r in restored for s in suffixes]
  if _OUTPUT.value:
    result = {
      "threads": _THREADS.value,
      "cold": rows,
      "resumed_from_half": half,
      "first_token": first,
    }
    record.write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
