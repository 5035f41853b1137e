"""What the demo serves: questions about documents, and who answers them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.presets import preset
from sparse_prefix_jax.training.trained import trained_model
from sparse_prefix_jax.workloads.demo_corpus import (
  demo_requests,
  load_demo_tokenizer,
)
from sparse_prefix_jax.workloads.recall.requests import recall_requests
from sparse_prefix_jax.workloads.recall.tokenizer import recall_tokenizer

_SEED = 42


class Stream(NamedTuple):
  """Requests in the order in which they arrive.

  Attributes:
    prompts: Token ids. int32 [t] each
    answers: The id that should come first, for each; None if nobody knows.
    shared: Tokens of the document at the start of each prompt; empty if nobody
      knows.
    tokenizer: What reads and writes the ids.
    make_model: Makes the model that serves them unless another is given.
  """

  prompts: list[np.ndarray]
  answers: list[int] | None
  shared: list[int]
  tokenizer: Any
  make_model: Callable[[], HybridDecoder]

  @property
  def tokens_total(self) -> int:
    """Tokens of all prompts."""
    return sum(prompt.size for prompt in self.prompts)

  @property
  def has_controls(self) -> bool:
    """Whether answers are known, of at least two documents."""
    documents = {
      prompt[:shared].tobytes()
      for prompt, shared in zip(self.prompts, self.shared)
    }
    return self.answers is not None and len(documents) > 1

  def first(self, requests: int | None) -> "Stream":
    """The first requests.

    Args:
      requests: How many; None for all.

    Raises:
      ValueError: Fewer than one, or more than there are.
    """
    if requests is not None and not 1 <= requests <= len(self.prompts):
      raise ValueError(
        f"requests is {requests}; the stream has 1 to {len(self.prompts)}."
      )
    answers = self.answers and self.answers[:requests]
    return self._replace(
      prompts=self.prompts[:requests],
      answers=answers,
      shared=self.shared[:requests],
    )


def recall_stream() -> Stream:
  """Questions about facts, for the model that was trained to answer them.

  Raises:
    MissingExtraError: If the package `tokenizers` is not installed.
  """
  requests = recall_requests(_SEED)
  return Stream(
    prompts=[r.token_ids for r in requests],
    answers=[r.answer for r in requests],
    shared=[r.shared for r in requests],
    tokenizer=recall_tokenizer(),
    make_model=trained_model,
  )


def document_stream() -> Stream:
  """Questions about four written documents, for a model of random weights.

  Nobody reads its answers: speed and exactness do not depend on what a model
  has learned.

  Raises:
    MissingExtraError: If the package `tokenizers` is not installed.
  """
  return Stream(
    prompts=[r.token_ids for r in demo_requests(interleave_seed=_SEED)],
    answers=None,
    shared=[],
    tokenizer=load_demo_tokenizer(),
    make_model=lambda: HybridDecoder(preset("demo"), rngs=nnx.Rngs(0)),
  )
