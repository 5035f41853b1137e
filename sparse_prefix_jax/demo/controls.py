"""What answers are worth without the states that they come from.

Each document is read up to its last lattice point; then its questions go on
from the carry there: as it is, with states of zeros, and with those of another
document. Keys and values stay: attention sees 64 tokens, none of a fact.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.demo.stream import Stream
from sparse_prefix_jax.layers import ExplicitCarry
from sparse_prefix_jax.models.decoder import HybridDecoder

STATES = ("restored", "zeros", "another_document")
"""What the questions go on from."""


def measure_controls(model: HybridDecoder, stream: Stream) -> dict[str, Any]:
  """Answers every question from three kinds of states.

  Args:
    model: What answers.
    stream: Questions with answers, about at least two documents.

  Returns:
    `answers`, how many questions, and the shares of right ones from states as
    they were kept (`restored`), of `zeros` and of `another_document`.
  """
  chunk = model.config.numerics.chunk
  parts = [
    _Part(prompt[:start], prompt[start:], answer)
    for prompt, start, answer in zip(
      stream.prompts,
      [shared // chunk * chunk for shared in stream.shared],
      stream.answers or [],
      strict=True,
    )
  ]
  carries = _read_documents(model, parts)
  keys, right = list(carries), dict.fromkeys(STATES, 0)
  padded = max(part.rest.size for part in parts)
  for part in parts:
    carry = carries[part.key]
    other = keys[(keys.index(part.key) + 1) % len(keys)]
    slots = dict.fromkeys(STATES, carry.slots)
    slots["zeros"] = jax.tree.map(jnp.zeros_like, carry.slots)
    slots["another_document"] = carries[other].slots
    for name in STATES:
      start = carry._replace(slots=slots[name])
      _, given = _read(model, start, part.rest, padded)
      right[name] += given == part.answer
  shares = {name: count / len(parts) for name, count in right.items()}
  return {"answers": len(parts)} | shares


class _Part(NamedTuple):
  """A prompt, cut at the last lattice point of its document."""

  document: np.ndarray
  rest: np.ndarray
  answer: int

  @property
  def key(self) -> bytes:
    """What tells documents apart."""
    return self.document.tobytes()


def _read_documents(
  model: HybridDecoder, parts: Sequence[_Part]
) -> dict[bytes, ExplicitCarry]:
  """The carry after each document, with room for what follows."""
  documents = {part.key: part.document for part in parts}
  longest = max(part.document.size for part in parts)
  room = longest + max(part.rest.size for part in parts)
  empty = model.initialize_carry(1, room)
  return {
    key: _read(model, empty, document, longest)[0]
    for key, document in documents.items()
  }


def _read(
  model: HybridDecoder, carry: ExplicitCarry, ids: np.ndarray, padded: int
) -> tuple[ExplicitCarry, int]:
  """Reads ids, padded so that nothing compiles again; and what comes next."""
  tokens = np.zeros((1, padded), np.int32)
  tokens[0, : ids.size] = ids
  carry, logits = _scan(model, carry, tokens, np.array([ids.size], np.int32))
  return carry, int(logits.argmax())


@jax.jit
def _scan(
  model: HybridDecoder, carry: ExplicitCarry, tokens: Any, length: Any
) -> tuple[ExplicitCarry, jax.Array]:
  """The carry after the tokens, and the logits of the last."""
  out = model.scan(carry, tokens, length)
  rows = jnp.broadcast_to(
    out.y[0, length[0] - 1],
    (model.config.numerics.head_rows, out.y.shape[-1]),
  )
  return out.carry, model.head(rows)[0]
