"""What one row draws from its logits, and what it asks for.

From the logits l of the model, in this order: what is not allowed becomes -inf,
the bias is added; an id that stands in the prompt or was decoded has l / r if
l > 0, else l * r (repetition penalty r); one that was decoded n times loses
presence + n * frequency. Temperature 0 takes the largest, of equal ones the
lowest id. Otherwise l is divided by the temperature; of the ids in descending
order (equal ones by id) the first `top_k` are kept, of these the shortest start
whose probability reaches `top_p`, of these all that have at least `min_p` times
the largest probability; the Gumbel-max rule draws one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt32

from sparse_prefix_jax.kernels.chunks import select

MOST_BEST = 20
"""How many ids with their log probabilities a row may ask for."""
MOST_BIASES = 300
"""How many ids a row may give a bias."""
NO_COUNTS = -1
"""The slot of counts of a row without penalties."""
NO_BIAS = -1
"""The id of a bias that is none."""

_LEAST_LIMIT = 1e-30  # far below the weight of the first id, which is 1

TokenCounts: TypeAlias = Int32[Array, "slots vocab"]
"""How often each id stands in each sequence that has penalties.

Twice the times that it was decoded, plus 1 if it stands in the prompt.
"""


class SamplingRows(NamedTuple):
  """What each row asks for; arrays of NumPy or of the device. [b]

  Attributes:
    active: Whether the row is in use; others draw id 0.
    temperature: 0 for the largest logit.
    top_k: How many ids to keep, 0 for all.
    top_p: Which share of the probability to keep, in (0, 1].
    min_p: The least probability to keep, as a share of the largest.
    repetition: Repetition penalty, 1 for none.
    presence: Presence penalty, 0 for none.
    frequency: Frequency penalty, 0 for none.
    seed: Of the request.
    sample: Which of several samples of one prompt.
    counts: Slot of its counts, or `NO_COUNTS`.
    best: Whether the `MOST_BEST` best ids are wanted.
    bias_ids: Ids with a bias, then `NO_BIAS`. [b biases]
    biases: What is added to their logits. [b biases]
    allowed: Bit i % 32 of word i // 32 says whether id i may come. [b words]
  """

  active: Bool[Array | np.ndarray, "*b"]
  temperature: Float32[Array | np.ndarray, "*b"]
  top_k: Int32[Array | np.ndarray, "*b"]
  top_p: Float32[Array | np.ndarray, "*b"]
  min_p: Float32[Array | np.ndarray, "*b"]
  repetition: Float32[Array | np.ndarray, "*b"]
  presence: Float32[Array | np.ndarray, "*b"]
  frequency: Float32[Array | np.ndarray, "*b"]
  seed: UInt32[Array | np.ndarray, "*b"]
  sample: UInt32[Array | np.ndarray, "*b"]
  counts: Int32[Array | np.ndarray, "*b"]
  best: Bool[Array | np.ndarray, "*b"]
  bias_ids: Int32[Array | np.ndarray, "*b biases"]
  biases: Float32[Array | np.ndarray, "*b biases"]
  allowed: UInt32[Array | np.ndarray, "*b words"]


class Sampled(NamedTuple):
  """What was drawn; arrays of the device. [b]

  Log probabilities are those of the model: log softmax of its logits, before
  masks, biases, penalties and temperature.

  Attributes:
    ids: The ids.
    logprobs: Their log probabilities.
    best_ids: The ids with the largest logits, of equal ones the lowest first;
      -1 where none were wanted. [b best]
    best_logprobs: Their log probabilities. [b best]
  """

  ids: Int32[Array, "*b"]
  logprobs: Float32[Array, "*b"]
  best_ids: Int32[Array, "*b best"]
  best_logprobs: Float32[Array, "*b best"]


_Row: TypeAlias = Float32[Array, "vocab"]


class RowNeeds(NamedTuple):
  """What is asked for; what is not is skipped.

  Attributes:
    penalties: Penalties, by counts.
    draws: A draw, where it is not the largest logit.
    top_k: That only the largest so many are kept.
    top_p: That only those with a share of the probability are.
    best: The best ids.
  """

  penalties: Bool[Array, "*b"] | bool
  draws: Bool[Array, "*b"] | bool
  top_k: Bool[Array, "*b"] | bool
  top_p: Bool[Array, "*b"] | bool
  best: Bool[Array, "*b"] | bool


def needs_of(row: SamplingRows) -> RowNeeds:
  """What a row asks for, or each of several. [*b]"""
  return RowNeeds(
    penalties=jnp.asarray(row.counts >= 0),
    draws=jnp.asarray(row.temperature > 0),
    top_k=jnp.asarray(row.top_k > 0),
    top_p=jnp.asarray(row.top_p < 1),
    best=jnp.asarray(row.best),
  )


NOTHING = RowNeeds(False, False, False, False, False)
"""What a row needs that takes its largest logit."""


def _where_needed(
  needed: Bool[Array, ""] | bool,
  then: Callable[[], Any],
  otherwise: Callable[[], Any],
) -> Any:
  """A condition; what is known beforehand is none for the device."""
  if isinstance(needed, bool):
    return then() if needed else otherwise()
  return jax.lax.cond(needed, then, otherwise)


def draw_row(
  counts: TokenCounts,
  logits: _Row,
  row: SamplingRows,
  position: Int32[Array, ""],
  needs: RowNeeds,
) -> Sampled:
  """Draws one id, and looks up what is asked of the logits besides.

  Args:
    counts: Of all sequences.
    logits: Of the row.
    row: What it asks for.
    position: Which token it draws.
    needs: What it asks for, or somebody beside it.
  """
  adjusted = _penalised(_biased(logits, row), row, counts, needs)
  largest = jnp.argmax(adjusted).astype(jnp.int32)

  def drawn() -> Int32[Array, ""]:
    other = _drawn(adjusted, row, position, needs)
    return jnp.where(row.temperature > 0, other, largest)

  token = _where_needed(needs.draws, drawn, lambda: largest)
  total = jax.nn.logsumexp(logits)
  best = _best(logits, total, row, needs)
  return Sampled(token, logits[token] - total, *best)


def draw_nothing(logits: _Row) -> Sampled:
  """The result of a row that is not in use."""
  zero = jnp.zeros((), jnp.int32)
  return Sampled(zero, jnp.zeros((), jnp.float32), *_none_best(logits))


def _none_best(
  logits: _Row,
) -> tuple[Int32[Array, "best"], Float32[Array, "best"]]:
  """What stands for the best ids where nobody wants them."""
  size = min(MOST_BEST, logits.size)
  return jnp.full(size, -1, jnp.int32), jnp.full_like(
    logits, -jnp.inf, shape=size
  )


def _best(
  logits: _Row,
  total: Float32[Array, ""],
  row: SamplingRows,
  needs: RowNeeds,
) -> tuple[Int32[Array, "best"], Float32[Array, "best"]]:
  """The ids with the largest logits, and their log probabilities."""
  none = _none_best(logits)

  def found() -> tuple[Array, Array]:
    values, ids = jax.lax.top_k(logits, min(MOST_BEST, logits.size))
    best = ids.astype(jnp.int32), values - total
    return select(jnp.asarray(row.best), best, none)

  return _where_needed(needs.best, found, lambda: none)


def _biased(logits: _Row, row: SamplingRows) -> _Row:
  """Logits with -inf for what is not allowed, and with the bias."""
  places = jnp.arange(logits.size, dtype=jnp.uint32)
  words = jnp.asarray(row.allowed)[places // 32]
  allowed = (words >> places % 32) & 1 == 1
  ids = jnp.asarray(row.bias_ids)
  inside = jnp.where(ids >= 0, ids, logits.size)
  logits = logits.at[inside].add(row.biases, mode="drop")
  return jnp.where(allowed, logits, -jnp.inf)


def _penalised(
  logits: _Row, row: SamplingRows, counts: TokenCounts, needs: RowNeeds
) -> _Row:
  """Logits after the penalties, where the row has counts."""

  def penalised() -> _Row:
    count = counts[row.counts]
    decoded = count >> 1
    repeated = jnp.where(
      logits > 0, logits / row.repetition, logits * row.repetition
    )
    out = jnp.where(count > 0, repeated, logits)
    out = out - row.presence * (decoded > 0).astype(jnp.float32)
    out = out - row.frequency * decoded.astype(jnp.float32)
    return jnp.where(row.counts >= 0, out, logits)

  return _where_needed(needs.penalties, penalised, lambda: logits)


def _drawn(
  logits: _Row,
  row: SamplingRows,
  position: Int32[Array, ""],
  needs: RowNeeds,
) -> Int32[Array, ""]:
  """An id by the Gumbel-max rule, out of those that are kept."""
  # From the largest: no temperature makes infinities of it.
  scaled = (logits - jnp.max(logits)) / row.temperature
  kept = kept_ids(scaled, row, needs)
  noise = jax.random.gumbel(_key(row, position), logits.shape, logits.dtype)
  chosen = jnp.argmax(jnp.where(kept, scaled + noise, -jnp.inf))
  return chosen.astype(jnp.int32)


def _key(row: SamplingRows, position: Int32[Array, ""]) -> Key[Array, ""]:
  """The key of a draw: of seed, sample index and position alone."""
  key = jax.random.key(row.seed, impl="threefry2x32")
  key = jax.random.fold_in(key, row.sample)
  return jax.random.fold_in(key, position)


def kept_ids(
  scaled: _Row, row: SamplingRows, needs: RowNeeds | None = None
) -> Bool[Array, "vocab"]:
  """Finds the ids that top-k, top-p and min-p keep.

  Args:
    scaled: Logits over the temperature, the largest is 0.
    row: One row.
    needs: What it needs, or somebody beside it; None for its own.

  Returns:
    Whether each id may be drawn; at least one may.
  """
  needs = needs_of(row) if needs is None else needs
  keys = _ascending(scaled)
  everything = jnp.ones(scaled.shape, bool)

  def largest() -> Bool[Array, "vocab"]:
    start = _start(keys, jnp.ones_like(scaled), jnp.float32(row.top_k))
    return start | (row.top_k <= 0)

  first = _where_needed(needs.top_k, largest, lambda: everything)

  def likely() -> Bool[Array, "vocab"]:
    weights = jnp.where(first, jnp.exp(scaled), 0)
    share = jnp.float32(row.top_p) * jnp.sum(weights)
    return _start(keys, weights, share) | (row.top_p >= 1)

  reaching = _where_needed(needs.top_p, likely, lambda: everything)
  probable = (scaled >= jnp.log(row.min_p)) & (scaled > -jnp.inf)
  return first & reaching & probable


def _ascending(values: _Row) -> UInt32[Array, "vocab"]:
  """Integers in the order of floats; the two zeros are one."""
  bits = jax.lax.bitcast_convert_type(
    jnp.where(values == 0, 0.0, values), jnp.uint32
  )
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits < sign, bits | sign, ~bits)


def _start(
  keys: UInt32[Array, "vocab"],
  weights: _Row,
  limit: Float32[Array, ""],
) -> Bool[Array, "vocab"]:
  """Finds the shortest start of the descending order that weighs enough.

  Of equal keys, whose weights are equal too, the lowest ids come first. The
  last key of the start is found bit by bit, in 32 sums: a sort of a vocabulary
  takes many times as long on a CPU. A sum of fewer weights in the same order is
  never larger, rounding included, so the search is exact.

  Args:
    keys: What is ordered.
    weights: Not negative; the largest key has some.
    limit: What the start weighs at least, if all do.
  """
  # A share may round to 0; the first id is always kept.
  limit = jnp.maximum(limit, _LEAST_LIMIT)

  def above(key: UInt32[Array, ""]) -> Float32[Array, ""]:
    return jnp.sum(jnp.where(keys > key, weights, 0))

  def narrow(bit: Int32[Array, ""], key: UInt32[Array, ""]) -> Array:
    lower = key ^ (jnp.uint32(1 << 31) >> jnp.asarray(bit, jnp.uint32))
    return jnp.where(above(lower) < limit, lower, key)

  last = jax.lax.fori_loop(0, 32, narrow, jnp.uint32(2**32 - 1))
  equal = keys == last
  each = jnp.max(jnp.where(equal, weights, 0))
  count = jnp.ceil((limit - above(last)) / each)
  place = jnp.cumsum(equal, dtype=jnp.int32).astype(jnp.float32)
  return (keys > last) | (equal & (place <= count))
