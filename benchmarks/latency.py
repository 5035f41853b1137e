"""Times single prefills that resume anywhere and capture any number."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from flax import nnx

from sparse_prefix_jax import HybridDecoder, PrefixCache, prefill
from sparse_prefix_jax.models import ModelConfig
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes


class Case(NamedTuple):
  """A prefill: tokens of the prompt, restored position, states captured."""

  length: int
  resumed: int
  captures: int


class LatencyMeter:
  """A model and a cache with a state wherever a case resumes.

  One long prompt is computed once; a case's prompt shares it up to the position
  that it resumes from, and what the case stores is dropped after it.
  """

  def __init__(self, config: ModelConfig, cases: Iterable[Case]) -> None:
    cases, chunk = list(cases), config.numerics.chunk
    self.chunk = chunk
    self.model = HybridDecoder(config, rngs=nnx.Rngs(0))
    positions = sorted({case.resumed for case in cases} - {0})
    longest = max(case.length for case in cases) // chunk + 2
    slots = len(positions) + max(case.captures for case in cases) + 6
    room = slots * state_bytes(config), 3 * longest * page_bytes(config)
    self.cache = PrefixCache(
      self.model, capacity=sum(room), state_share=room[0] / sum(room)
    )
    self.rng = np.random.default_rng(0)
    self.vocabulary = config.vocab_size
    self.base = self.rng.integers(0, self.vocabulary, longest * chunk)
    if positions:
      base = self.base[: positions[-1]]
      out = prefill(self.model, self.cache, [base], capture=[positions])
      self.cache.release(out.sequences)
    for rung in config.numerics.ladder:  # compiles every program
      self.seconds(Case(rung * chunk, 0, 0))

  def seconds(self, case: Case) -> float:
    """Wall time from the prompt to its last token's logits, in seconds."""
    prompt = self._prompt(case)
    first, last = case.resumed // self.chunk + 1, case.length // self.chunk
    spread = np.linspace(first, last, case.captures).round().astype(int)
    capture = [int(index) * self.chunk for index in spread]
    start = time.perf_counter()
    out = prefill(self.model, self.cache, [prompt], capture=[capture])
    seconds = time.perf_counter() - start
    self.cache.release(out.sequences, keep=0)  # the next case finds the base
    (report,) = out.reports
    assert report.resumed == case.resumed, (report, case)
    assert len(report.captured) == case.captures, (report, case)
    return seconds

  def _prompt(self, case: Case) -> np.ndarray:
    """Shares the base up to `resumed`, and not one token more."""
    prompt = self.rng.integers(0, self.vocabulary, case.length)
    prompt[: case.resumed] = self.base[: case.resumed]
    other = self.base[case.resumed] + 1
    prompt[case.resumed] = other % self.vocabulary
    return prompt
