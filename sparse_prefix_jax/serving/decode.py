"""Decoding that stays on the lattice.

A token is one step from the running slot. When it completes a chunk, the chunk
is run once more by the prefill program from the lattice carry before it: only
that canonical carry, and the canonical keys and values, are ever stored, so the
next turn of a conversation hits exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import check_ids
from sparse_prefix_jax.cache.running import Running, SequenceHandle
from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.kinds import check_flag
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.runtime.plan import Plan, page_table
from sparse_prefix_jax.runtime.programs import Step
from sparse_prefix_jax.runtime.run import last_rows
from sparse_prefix_jax.serving.checks import check_cache


class DecodeOutput(NamedTuple):
  """Result of `decode`, in the order of the sequences.

  Attributes:
    logits: Float32 after the new token. [b vocab]
    sequences: The handles to use from here on.
  """

  logits: np.ndarray
  sequences: tuple[SequenceHandle, ...]


def decode(
  model: HybridDecoder,
  cache: PrefixCache,
  sequences: Sequence[SequenceHandle],
  next_tokens: at.Tokens,
  *,
  exact: bool = False,
) -> DecodeOutput:
  """One token for every sequence.

  The logits are a function of the tokens and of where decoding began: the same
  bits with and without the cache, whoever joins or leaves. With `exact` they
  are those that prefill gives for the same tokens, at the cost of a chunk of
  prefill per token, for whoever must re-prefill preempted requests.

  Args:
    model: The model of the cache.
    cache: Where the sequences run.
    sequences: Handles; any number, in any order.
    next_tokens: One id per sequence.
    exact: Re-run the padded chunk instead of stepping. A sequence keeps to the
      form that it began with.

  Returns:
    Logits and the handles to go on with. If the step is interrupted
    (KeyboardInterrupt, a failing device), its sequences end: a step writes the
    slot that it reads, so it cannot be tried again. What their prompts were
    given stays stored, what was decoded does not.

  Raises:
    ValueError: If a handle is stale or named twice, an id is out of vocabulary,
      a sequence is at max_length or changes its form; nothing has changed then.
    CapacityError: If a new chunk begins and there is no page for it; nothing
      has changed then.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache
    >>> from sparse_prefix_jax import prefill, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity="4MiB")
    >>> out = prefill(model, cache, [[1, 2, 3]])
    >>> out = decode(model, cache, out.sequences, [4])
    >>> out.logits.shape, out.sequences[0].length
    ((1, 512), 4)
    >>> cache.release(out.sequences)
  """
  check_cache(cache)
  check_flag("exact", exact)
  tokens = check_ids("next_tokens", next_tokens, cache.config.vocab_size)
  with cache.call() as mine:
    cache.check_model(model)
    running = _checked(cache, sequences, tokens)
    cache.store.advance(running, exact=exact)
    mine += running
    for one, token in zip(running, tokens.tolist()):
      cache.store.append(one, token)
    if exact:
      logits = _run_last_chunks(cache, running, last_rows)
    else:
      logits = _step_rows(cache, running)
      completed = [r for r in running if r.length % cache.store.chunk == 0]
      _run_last_chunks(cache, completed, _no_rows)
    return DecodeOutput(logits, tuple(one.handle for one in running))


def _checked(
  cache: PrefixCache, sequences: Sequence[SequenceHandle], tokens: np.ndarray
) -> list[Running]:
  """The sequences of the handles; refuses what cannot take a token."""
  running = cache.find_all(sequences)
  if len(running) != tokens.size:
    raise ValueError(
      f"next_tokens has {tokens.size} ids for {len(running)} sequences; it "
      "needs one each."
    )
  longest = cache.config.numerics.max_length
  for one in running:
    if one.length >= longest:
      raise ValueError(
        f"{one.handle} is at max_length = {longest} of the model's "
        "configuration."
      )
  return running


def _step_rows(cache: PrefixCache, running: Sequence[Running]) -> np.ndarray:
  """The decode program, `decode_rows` sequences at a time."""
  rows = cache.config.numerics.decode_rows
  parts = [np.zeros((0, cache.config.vocab_size), np.float32)]
  for start in range(0, len(running), rows):
    part = running[start : start + rows]
    tokens = np.zeros(rows, np.int32)
    tokens[: len(part)] = [one.tokens.ids[-1] for one in part]
    step = step_input(cache.config, part, tokens)
    parts.append(cache.run_step(step, len(part)))
  return np.concatenate(parts)


def step_input(
  config: ModelConfig,
  running: Sequence[Running],
  tokens: np.ndarray | jax.Array,
) -> Step:
  """Input of the decode program for tokens that were booked.

  Args:
    config: Of the model.
    running: At most `decode_rows`; the other rows are free.
    tokens: The id of the last token of each, and of free rows any.

  Returns:
    The input.
  """
  size, chunk = config.numerics.decode_rows, config.numerics.chunk
  read, write, position = np.zeros((3, size), np.int32)
  read[:], write[:] = ZERO, NONE
  for i, one in enumerate(running):
    begins = (one.length - 1) % chunk == 0
    position[i] = one.length - 1
    read[i] = one.lattice_slot if begins else one.running_slot
    write[i] = one.running_slot
  pages = [one.pages for one in running]
  pages += [[]] * (size - len(running))
  active = np.arange(size) < len(running)
  # They stay on the host, as the input of a prefill program does.
  rows: Any = (read, write, position, active)
  inputs: Any = (tokens, Rows(*rows), page_table(config, pages))
  return Step(*inputs)


def _no_rows(plan: Plan) -> np.ndarray:
  """For a plan of which nobody wants logits."""
  del plan
  return np.zeros(0, np.int64)


def _run_last_chunks(
  cache: PrefixCache,
  running: Sequence[Running],
  choose: Callable[[Plan], np.ndarray],
) -> np.ndarray:
  """The last chunk of each once more, by the prefill program.

  A chunk that is complete becomes canonical: its carry and its keys and values
  take the place of those of the steps.
  """
  segments = [cache.store.next_segment(one) for one in running]
  logits = cache.run([s for s in segments if s], choose)
  for one, segment in zip(running, segments):
    if segment:
      cache.store.commit(one, segment)
  return logits
