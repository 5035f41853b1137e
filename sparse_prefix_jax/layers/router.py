"""Which experts compute a token, from the scores of a router."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32


class Routing(NamedTuple):
  """Which experts compute a token, the best first, and how much each counts.

  Attributes:
    weight: Factors of the experts' outputs. [*rows chosen]
    expert: Their numbers. [*rows chosen]
  """

  weight: Float32[Array, "*rows chosen"]
  expert: Int32[Array, "*rows chosen"]


def softmax_routing(
  scores: Float32[Array, "rows experts"], chosen: int, normalized: bool
) -> Routing:
  """Takes the largest shares of a softmax over all experts.

  Args:
    scores: What the router says.
    chosen: How many experts compute a token; of equal ones the first.
    normalized: Whether their weights are divided by their sum.

  Example:
    >>> scores = jnp.log(jnp.array([[1.0, 5.0, 2.0]]))
    >>> softmax_routing(scores, 2, normalized=False).expert.tolist()
    [[1, 2]]
  """
  weight, expert = lax.top_k(jax.nn.softmax(scores, axis=-1), chosen)
  if normalized:
    weight = weight / jnp.sum(weight, axis=-1, keepdims=True)
  return Routing(weight, expert)


def sigmoid_routing(
  scores: Float32[Array, "rows experts"],
  correction: Float32[Array, "experts"],
  chosen: int,
  normalized: bool,
  groups: tuple[int, int],
) -> Routing:
  """Takes the largest sigmoids after a correction, which weighs nothing.

  Of several groups of experts only the best are looked at: those whose two best
  experts have the largest sum. (DeepSeek-V3, 2024.)

  Args:
    scores: What the router says.
    correction: What is added for the choice alone; it balances the experts.
    chosen: How many experts compute a token; of equal ones the first.
    normalized: Whether their weights are divided by their sum.
    groups: How many groups there are, and how many of them are looked at.

  Example:
    >>> scores = jnp.array([[0.0, 2.0, 1.0]])
    >>> correction = jnp.array([9.0, 0.0, 0.0])
    >>> sigmoid_routing(scores, correction, 2, True, (1, 1)).expert.tolist()
    [[0, 1]]
  """
  share = jax.nn.sigmoid(scores)
  ranked = _in_best_groups(share + correction[None], *groups)
  _, expert = lax.top_k(ranked, chosen)
  weight = jnp.take_along_axis(share, expert, axis=-1)
  if normalized:
    # Shares may all round to zero.
    total = jnp.sum(weight, axis=-1, keepdims=True) + 1e-20
    weight = weight / total
  return Routing(weight, expert)


def _in_best_groups(
  ranked: Float32[Array, "rows experts"], groups: int, best: int
) -> Float32[Array, "rows experts"]:
  """Leaves the experts of the best groups, and -inf for the others."""
  if best == groups:
    return ranked
  parts = ranked.reshape(ranked.shape[0], groups, -1)
  total = jnp.sum(lax.top_k(parts, 2)[0], axis=-1)
  _, looked_at = lax.top_k(total, best)
  kept = jnp.any(
    looked_at[..., None] == jnp.arange(groups, dtype=jnp.int32)[None, None],
    axis=1,
  )
  return jnp.where(kept[..., None], parts, -jnp.inf).reshape(ranked.shape)
