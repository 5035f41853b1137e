"""One step of training: the gradient through `model.scan`, and AdamW."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparse_prefix_jax import extras
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.training.losses import answer_loss

LEARNING_RATE = 3e-3
"""The rate between warm-up and decay."""

_WARM_UP, _CONSTANT_TO = 0.02, 0.6  # shares of all steps
_LAST = 0.02  # of the rate, at the end
_CLIP, _B2, _WEIGHT_DECAY = 1.0, 0.98, 0.01


class TrainState(NamedTuple):
  """What a step changes.

  Attributes:
    model: The model, whose parameters are trained.
    optimizer: The state of the optimizer, a tree of arrays.
  """

  model: HybridDecoder
  optimizer: Any


class StepReport(NamedTuple):
  """What a step saw.

  Attributes:
    loss: The mean cross-entropy of its answers, before the step.
    right: The share of its answers that were right.
  """

  loss: Any
  right: Any


@functools.cache
def make_optimizer(steps: int) -> Any:
  """Makes AdamW with warm-up, a constant rate, and a linear decay.

  Args:
    steps: How many steps there will be.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    MissingExtraError: If the package `optax` is not installed.
  """
  optax = extras.optional("optax", "train")
  warm, constant = int(_WARM_UP * steps), int(_CONSTANT_TO * steps)
  rate = optax.join_schedules(
    [
      optax.linear_schedule(0.0, LEARNING_RATE, max(warm, 1)),
      optax.constant_schedule(LEARNING_RATE),
      optax.linear_schedule(
        LEARNING_RATE, _LAST * LEARNING_RATE, max(steps - constant, 1)
      ),
    ],
    [warm, constant],
  )
  return optax.chain(
    optax.clip_by_global_norm(_CLIP),
    optax.adamw(rate, b2=_B2, weight_decay=_WEIGHT_DECAY),
  )


@contextlib.contextmanager
def _plain_settings() -> Iterator[None]:
  """Lets optax mix types and ranks, and computes in 32 bits.

  Whatever the process has set: where 64 bits are the default, optax takes
  powers of its decays in them, and weights would get other bits.
  """
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
    jax.enable_x64(False),
  ):
    yield


@functools.cache
def make_step(steps: int) -> Callable[..., tuple[TrainState, StepReport]]:
  """Makes the compiled step `(state, token_ids, answers) -> state, report`.

  Args:
    steps: How many steps there will be, as for `make_optimizer`.

  Returns:
    A function that takes the memory of the state that it is given; it is
    compiled once for every shape of documents.

  Raises:
    MissingExtraError: If the package `optax` is not installed.
  """
  optax, optimizer = extras.optional("optax", "train"), make_optimizer(steps)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: TrainState, token_ids: Any, answers: Any) -> Any:
    def loss(model: HybridDecoder) -> tuple[jax.Array, jax.Array]:
      out = answer_loss(model, token_ids, answers)
      return out.loss, out.correct

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (value, correct), gradient = value_and_grad(state.model)
    with _plain_settings():
      updates, kept = optimizer.update(gradient, state.optimizer, state.model)
      model = optax.apply_updates(state.model, updates)
    report = StepReport(value, correct.mean(dtype=jnp.float32))
    return TrainState(model, kept), report

  return step
