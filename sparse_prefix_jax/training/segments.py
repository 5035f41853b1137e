"""The gradient of one long document, in segments.

A forward pass keeps the states at the start of every segment, and the last
keys and values: later tokens are masked, so these serve every segment. The
backward pass takes the segments in reverse and hands the gradient of a
segment's carry to the one before. With as many segments as a segment has groups
of chunks, what is kept beyond inputs, keys and values grows with the square
root of the length. Where the hand-over is cut, this is truncated
back-propagation; where it is not, it is that of one pass.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.checks import check_axes
from sparse_prefix_jax.kernels.slot_checks import concrete
from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.layers import ExplicitCarry
from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.layers.explicit import check_scan
from sparse_prefix_jax.layers.wide_gradients import (
  added_wide,
  rounded_once,
  wide_zeros,
)
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.training.losses import check_answers, cross_entropy
from sparse_prefix_jax.whole_numbers import check_at_least, check_whole


class Labelled(NamedTuple):
  """Tokens, what follows them, and how much each of that weighs.

  Attributes:
    token_ids: What is read. int32 [b t]
    labels: What is to be predicted after each; any number, -100 for example,
      where the weight is 0. int32 [b t]
    weights: The factor of each cross-entropy. float32 [b t]
  """

  token_ids: Int32[Array, "b t"]
  labels: Int32[Array, "b t"]
  weights: Float[Array, "b t"]


class SegmentedGradient(NamedTuple):
  """What a long document says about the model.

  Attributes:
    loss: The weighted sum of the cross-entropies.
    model: Its gradient, a tree of the form of the model.
    carry: The carry after the document.
  """

  loss: Float32[Array, ""]
  model: Any
  carry: ExplicitCarry


def labelled_answers(
  token_ids: Int32[Array, "b t"], answers: Int32[Array, "b q"]
) -> Labelled:
  """Labels for the answers of documents: their mean weighs 1.

  Args:
    token_ids: The documents.
    answers: Positions of the answers, above 0, each once in its document.

  Raises:
    ValueError: If they are no integers that belong together, or a position is
      known and outside, or stands twice.

  Example:
    >>> labelled_answers(jnp.array([[5, 6, 7]]), jnp.array([[2]])).weights
    Array([[0., 1., 0.]], dtype=float32)
  """
  sizes = check_axes(
    "labelled_answers", token_ids=(token_ids, "b t"), answers=(answers, "b q")
  )
  concrete("token_ids", token_ids)  # No fractions.
  check_answers(answers, sizes["t"])
  known = concrete("answers", answers)
  if known is not None and (np.diff(np.sort(known)) == 0).any():
    raise ValueError("answers names a position of a document twice.")
  rows = jnp.arange(len(token_ids), dtype=jnp.int32)[:, None]
  zeros = jnp.zeros(token_ids.shape, jnp.float32)
  weights = zeros.at[rows, answers - 1].set(1 / answers.size)
  return Labelled(token_ids, jnp.roll(token_ids, -1, axis=1), weights)


def weighted_loss(
  model: HybridDecoder, carry: ExplicitCarry, data: Labelled
) -> tuple[Float32[Array, ""], ExplicitCarry]:
  """Reads all tokens in one pass.

  Args:
    model: What predicts.
    carry: The carry before the tokens.
    data: Tokens, labels and weights.

  Returns:
    The weighted sum of the cross-entropies, and the carry after the tokens.
  """
  out = model.scan(carry, data.token_ids)
  logits = model.head(out.y.reshape(-1, out.y.shape[-1]))
  losses = cross_entropy(logits, data.labels.reshape(-1))
  weights = data.weights.reshape(-1)
  # What weighs nothing may have any label.
  losses = jnp.where(weights == 0, 0.0, losses)
  return jnp.vdot(losses, weights), out.carry


def segment_length(tokens: int, chunk: int) -> int:
  """Returns the multiple of the chunk nearest to balance: sqrt(chunks) chunks.

  Args:
    tokens: Tokens of the document.
    chunk: Tokens of a chunk.

  Returns:
    The smallest number of chunks, in tokens, that divides the document and is
    at least the square root of its chunks.

  Raises:
    ValueError: If the document is not made of whole chunks, or these are none.

  Example:
    >>> [segment_length(t, 64) for t in (2048, 8192, 32768)]
    [512, 1024, 2048]
  """
  chunk = check_at_least("chunk", chunk, 1)
  chunks, rest = divmod(check_whole("tokens", tokens), chunk)
  if rest or chunks < 1:
    raise ValueError(
      f"a document has {tokens} tokens; it must be a multiple of {chunk}."
    )
  root = math.isqrt(chunks - 1) + 1
  return chunk * next(n for n in range(root, chunks + 1) if chunks % n == 0)


def segmented_gradient(
  model: HybridDecoder,
  carry: ExplicitCarry,
  data: Labelled,
  *,
  segment: int | None = None,
  horizon: int | Int32[Array, ""] | None = None,
) -> SegmentedGradient:
  """The loss of long documents and its gradient in the parameters.

  Args:
    model: What predicts.
    carry: The carry before the documents.
    data: Tokens, labels and weights.
    segment: Tokens of a segment; None for about the square root.
    horizon: After how many segments the gradient of the carry is cut; None cuts
      nothing, 1 hands nothing over. It may be traced.

  Returns:
    The loss, the gradient, and the carry after the documents.

  Raises:
    ValueError: If model or data are none, an id is outside of the vocabulary
      (a label too, unless it weighs nothing), segments are no multiples of the
      chunk that divide the documents, the horizon is below 1, or the carry is
      of other documents or has no room for them.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> data = labelled_answers(jnp.arange(256)[None], jnp.array([[200]]))
    >>> carry = model.initialize_carry(1, 256)
    >>> out = jax.eval_shape(segmented_gradient, model, carry, data)
    >>> out.carry.position.shape, out.model.embedding.shape
    ((1,), (512, 64))
  """
  check_class("model", model, HybridDecoder)
  check_class("data", data, Labelled, "of `labelled_answers`")
  fields = {name: (x, "b t") for name, x in data._asdict().items()}
  check_axes("segmented_gradient", **fields)
  _check_ids(data, model.config.vocab_size)
  tokens, chunk = data.token_ids.shape[1], model.config.numerics.chunk
  segment = segment_length(tokens, chunk) if segment is None else segment
  if not is_int(segment) or segment < 1 or segment % chunk or tokens % segment:
    raise ValueError(
      f"segment is {segment}; it must be a multiple of {chunk} that divides "
      f"{tokens}."
    )
  # What is wrong and traced would only show as NaN.
  check_scan(carry, jnp.full(len(data.token_ids), tokens), tokens, chunk)
  # The carry after the last segment has no gradient to cut.
  horizon = tokens // segment if horizon is None else horizon
  _check_horizon(horizon)
  parts = jax.tree.map(lambda x: _in_segments(x, segment), data)

  def forward(carry: ExplicitCarry, part: Labelled) -> tuple[Any, Any]:
    loss, after = weighted_loss(model, carry, part)
    return after, (loss, carry.position, carry.slots)

  after, (losses, *starts) = lax.scan(forward, carry, parts)
  d_model = _backward(model, after.pages, parts, starts, horizon)
  return SegmentedGradient(losses.sum(), d_model, after)


def _check_ids(data: Labelled, size: int) -> None:
  """Refuses known ids outside of the vocabulary: the loss would be NaN."""
  ids, labels = map(concrete, ("token_ids", "labels"), data[:2])
  traced = isinstance(data.weights, core.Tracer)
  if labels is not None:
    labels = None if traced else labels[np.asarray(data.weights) != 0]
  for name, known in (("token_ids", ids), ("labels", labels)):
    wrong = [] if known is None else known[(known < 0) | (known >= size)]
    if len(wrong):
      weighs = ", with a weight" if name == "labels" else ""
      raise ValueError(
        f"{name} holds {wrong[0]}{weighs}; an id is 0 to {size - 1}, of "
        "vocab_size."
      )


def _check_horizon(horizon: Any) -> None:
  """Refuses what is no number of segments; of a tracer its kind is known."""
  if not isinstance(horizon, core.Tracer):
    check_at_least("horizon", horizon, 1, 2**31 - 1)
  elif horizon.ndim or not jnp.issubdtype(horizon.dtype, jnp.integer):
    raise ValueError(f"horizon is {horizon.aval}; it must be an integer.")


def _in_segments(x: Array, segment: int) -> Array:
  """[b t] as [segments b segment]."""
  return x.reshape(x.shape[0], -1, segment).swapaxes(0, 1)


def _backward(
  model: HybridDecoder,
  pages: Any,
  parts: Labelled,
  starts: Any,
  horizon: int | Int32[Array, ""],
) -> Any:
  """Takes the segments in reverse, each from the states before it."""

  def segment(cotangents: Any, x: Any) -> tuple[Any, None]:
    d_model, d_slots, d_pages = cotangents
    index, part, position, slots = x

    def run(model: HybridDecoder, slots: Any, pages: Any) -> Any:
      carry = ExplicitCarry(position, slots, pages)
      loss, after = weighted_loss(model, carry, part)
      return loss, after.slots, after.pages

    cut = (index + 1) % horizon == 0
    d_slots, d_pages = jax.tree.map(
      lambda d: jnp.where(cut, jnp.zeros_like(d), d), (d_slots, d_pages)
    )
    _, pull = jax.vjp(run, model, slots, pages)
    d_here, d_slots, d_pages = pull((jnp.float32(1), d_slots, d_pages))
    return (added_wide(d_model, d_here), d_slots, d_pages), None

  slots = jax.tree.map(lambda x: jnp.zeros_like(x[0]), starts[1])
  none = wide_zeros(model), slots, jax.tree.map(jnp.zeros_like, pages)
  steps = jnp.arange(len(parts.token_ids), dtype=jnp.int32), parts, *starts
  (d_model, *_), _ = lax.scan(segment, none, steps, reverse=True)
  return rounded_once(d_model, model)
