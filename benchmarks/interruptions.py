"""Ctrl-C at any moment: what is left of a cache, and of those who stand by.

    python -m benchmarks.interruptions [--signals=200] [--output=FILE.json]

A timer raises a signal, as Ctrl-C does, at random moments of every kind of
call. After each the cache must add up, hold no slot or page too many, keep its
entries, and let a bystander go on with the bits of a run alone.
"""

import signal
import time

import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import trange

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax import (
  HybridDecoder,
  PrefixCache,
  decode,
  prefill,
  preset,
)
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.contract import ColdRuns, differing_bits
from sparse_prefix_jax.placement import PlacementPolicy

_SIGNALS = flags.DEFINE_integer("signals", 200, "Per kind of call.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

VERBS = ("prefill", "decode", "fork", "release")
LENGTH = 640


class Stage:
  """One model, and scenes on it."""

  def __init__(self) -> None:
    self.model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    self.cold = ColdRuns(self.model, 1024)
    self.random = np.random.default_rng(_SEED.value)
    self.entry = self.tokens(300)
    self.standing = self.tokens(100)
    self.expected = self.cold.decode(np.append(self.standing, 9), 100)

  def tokens(self, size: int) -> np.ndarray:
    """Random ids."""
    return self.random.integers(0, 512, size).astype(np.int32)

  def scene(self):
    """A cache with an entry, a bystander, and a sequence to act on."""
    policy = PlacementPolicy("block", 64)
    cache = PrefixCache(self.model, capacity="16MiB", placement=policy)
    cache.release(prefill(self.model, cache, [self.entry]).sequences)
    out = prefill(self.model, cache, [self.standing, self.tokens(127)])
    return cache, *out.sequences

  def act(self, verb: str, cache: PrefixCache, acting):
    """Calls of one kind, one after another, until a signal ends them."""
    while True:
      if verb == "prefill":
        prompt = np.append(self.entry, self.tokens(LENGTH))
        out = prefill(self.model, cache, [prompt])
        cache.release(out.sequences, keep=0)
      elif verb == "decode":
        (acting,) = decode(self.model, cache, [acting], [7]).sequences
        if acting.length > 1000:
          return
      else:
        twin = cache.fork(acting)
        cache.release([twin], keep=0)

  def faults(self, cache: PrefixCache, standing) -> list[str]:
    """What is wrong after an interruption."""
    found = []
    try:
      cache.audit()
    except AssertionError as error:
      found.append(str(error))
    if cache.store.match(_request(self.entry)).resume_blocks != 4:
      found.append("an entry is gone")
    out = decode(self.model, cache, [standing], [9])
    if differing_bits(out.logits[0], self.expected):
      found.append("the bystander has other bits")
    cache.release(cache.sequences)
    held = cache.store.index.stats
    if held.leased_slots or held.leased_pages or held.pins:
      found.append("something is leaked")
    return found


def _request(tokens: np.ndarray) -> Request:
  return Request.of_tokens(np.append(tokens, 1).astype(np.int32), 64)


def interrupt(stage: Stage, verb: str) -> list[str]:
  """One signal at a random moment."""
  cache, standing, acting = stage.scene()
  delay = float(stage.random.uniform(0.0005, 0.05))
  previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
  try:
    signal.setitimer(signal.ITIMER_REAL, delay)
    stage.act(verb, cache, acting)
    time.sleep(2 * delay)
    return ["no signal came"]
  except KeyboardInterrupt:
    return stage.faults(cache, standing)
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def main(argv: list[str]) -> None:
  """Interrupts, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  stage, result = Stage(), {}
  for verb in VERBS:
    cache, standing, _ = stage.scene()
    stage.faults(cache, standing)  # compiles
    found = [interrupt(stage, verb) for _ in trange(_SIGNALS.value, desc=verb)]
    clean = sum(not faults for faults in found)
    result[verb] = {
      "signals": len(found),
      "clean": clean,
      "faults": sorted({fault for faults in found for fault in faults}),
    }
    print(f"{verb}: {clean} of {len(found)} clean {result[verb]['faults']}")
  if _OUTPUT.value:
    write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
