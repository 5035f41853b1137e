"""Losses over explicit carries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32

from sparse_prefix_jax.kernels.checks import check_axes
from sparse_prefix_jax.kernels.slot_checks import concrete, widened
from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.models.decoder import HybridDecoder


class AnswerLoss(NamedTuple):
  """How well the answers of some documents are predicted.

  Attributes:
    loss: Mean cross-entropy of the answers, in nats.
    correct: Which answers would be given. [b q]
  """

  loss: Float32[Array, ""]
  correct: Array


def answer_loss(
  model: HybridDecoder,
  token_ids: Int32[Array, "b t"],
  answers: Int32[Array, "b q"],
) -> AnswerLoss:
  """Predicts the answers of whole documents, and nothing else.

  Args:
    model: What predicts.
    token_ids: The documents.
    answers: Positions of the answers, above 0. Of those that are traced and
      would be refused, the loss is NaN.

  Returns:
    The loss, and which answers are right.

  Raises:
    ValueError: If model or arrays are none, or do not belong together, or a
      position is known and outside.
  """
  check_class("model", model, HybridDecoder)
  sizes = check_axes(
    "answer_loss", token_ids=(token_ids, "b t"), answers=(answers, "b q")
  )
  b, t = sizes["b"], sizes["t"]
  check_answers(answers, t)
  token_ids, answers = widened(token_ids), widened(answers)
  out = model.scan(model.initialize_carry(b, t), token_ids)
  # From the end would be counted what is below 0.
  before = jnp.where(answers > 0, answers - 1, t)
  before = jnp.take_along_axis(out.y, before[:, :, None], axis=1)
  logits = model.head(before.reshape(-1, before.shape[-1]))
  asked = jnp.take_along_axis(token_ids, answers, axis=1)
  losses = cross_entropy(logits, asked.reshape(-1))
  correct = lax.argmax(logits, 1, jnp.int32) == asked.reshape(-1)
  return AnswerLoss(losses.mean(), correct.reshape(answers.shape))


def check_answers(answers: Int32[Array, "b q"], tokens: int) -> None:
  """Refuses known positions that would be another's, or nobody's.

  What is before the first token of a document cannot predict it.

  Args:
    answers: Positions of the answers.
    tokens: Tokens of a document.

  Raises:
    ValueError: Naming the first that is none.

  Example:
    >>> check_answers(jnp.array([[0, 3]]), 4)
    Traceback (most recent call last):
    ValueError: answers holds 0; a position is 1 to 3.
  """
  known = concrete("answers", answers)
  if known is None:
    return
  wrong = known[(known < 1) | (known >= tokens)]
  if wrong.size:
    raise ValueError(
      f"answers holds {wrong[0]}; a position is 1 to {tokens - 1}."
    )


def cross_entropy(
  logits: Float32[Array, "r v"], labels: Int32[Array, "r"]
) -> Float32[Array, "r"]:
  """Returns -log softmax(logits)[label] of every row; NaN where it is none."""
  scores = jax.nn.log_softmax(logits)
  # From the end would be counted what is below 0.
  labels = widened(labels)
  labels = jnp.where(labels < 0, logits.shape[1], labels)
  return -jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
