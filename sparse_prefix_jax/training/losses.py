"""Losses over explicit carries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

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
    answers: Positions of the answers, above 0.

  Returns:
    The loss, and which answers are right.
  """
  b, t = token_ids.shape
  out = model.scan(model.initialize_carry(b, t), token_ids)
  before = jnp.take_along_axis(out.y, answers[:, :, None] - 1, axis=1)
  logits = model.head(before.reshape(-1, before.shape[-1]))
  asked = jnp.take_along_axis(token_ids, answers, axis=1)
  losses = cross_entropy(logits, asked.reshape(-1))
  correct = logits.argmax(axis=-1) == asked.reshape(-1)
  return AnswerLoss(losses.mean(), correct.reshape(answers.shape))


def cross_entropy(
  logits: Float32[Array, "r v"], labels: Int32[Array, "r"]
) -> Float32[Array, "r"]:
  """Returns -log softmax(logits)[label] of every row."""
  scores = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
