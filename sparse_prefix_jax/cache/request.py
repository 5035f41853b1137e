"""What a caller asks to prefill: checked before anything changes."""

import dataclasses
from collections.abc import Sequence as Several

import numpy as np

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """One prompt of a batch.

  Attributes:
    index: Its place in the batch.
    tokens: Ids, int32. [t]
    anchors: Lattice positions worth a state besides the placement's.
    placed: Whether the placement has a say; not if captures were given.
    salt: The tenant.
  """

  index: int
  tokens: np.ndarray
  anchors: tuple[int, ...]
  placed: bool
  salt: bytes

  def lattice_overlap(self, other: "Request", chunk: int) -> int:
    """Chunks that both share and this one could resume after."""
    if self.salt != other.salt:
      return 0
    size = min(self.tokens.size - 1, other.tokens.size)
    differs = self.tokens[:size] != other.tokens[:size]
    return int(differs.argmax() if differs.any() else size) // chunk


def check_requests(
  cache: PrefixCache,
  prompts: Several[at.Tokens],
  anchors: Several[Several[int]] | None,
  capture: Several[Several[int]] | None,
  salt: bytes,
) -> list[Request]:
  """The requests of a batch, each checked before any of them runs.

  Args:
    cache: Its configuration and capacity bound what is allowed.
    prompts: Token ids per request.
    anchors: Positions per request, or None.
    capture: Lattice points per request, or None.
    salt: The tenant of the whole batch.

  Returns:
    The requests, in the order of the prompts.

  Raises:
    ValueError: Naming the argument, what it was and what is allowed.
    CapacityError: If one prompt alone exceeds the capacity.
  """
  if capture is not None and not cache.stores:
    raise ValueError(
      "capture was given, but placement no_cache of this cache stores nothing."
    )
  for name, values in (("anchors", anchors), ("capture", capture)):
    if values is not None and len(values) != len(prompts):
      raise ValueError(
        f"{name} has {len(values)} entries for {len(prompts)} prompts; it "
        "needs one per prompt."
      )
  requests = []
  for index, prompt in enumerate(prompts):
    tokens = check_tokens(f"prompts[{index}]", prompt, cache.config)
    request = Request(
      index=index,
      tokens=tokens,
      anchors=_kept(index, anchors, capture, tokens.size, cache.config.chunk),
      placed=capture is None,
      salt=salt,
    )
    cache.check_fits(tokens.size)
    requests.append(request)
  return requests


def check_tokens(
  name: str, prompt: at.Tokens, config: ModelConfig
) -> np.ndarray:
  """The ids of a prompt as int32.

  Args:
    name: What to call them in a message.
    prompt: Any sequence of integers.
    config: Vocabulary and longest sequence.

  Returns:
    A NumPy row. [t]

  Raises:
    ValueError: As `check_ids`, and if there are none or too many.
  """
  tokens = check_ids(name, prompt, config)
  if tokens.size == 0:
    raise ValueError(f"{name} is empty; a prompt has at least one token.")
  if tokens.size > config.max_length:
    raise ValueError(
      f"{name} has {tokens.size} tokens; max_length of the model's "
      f"configuration is {config.max_length}."
    )
  return tokens


def check_ids(name: str, ids: at.Tokens, config: ModelConfig) -> np.ndarray:
  """Token ids as int32, any number of them.

  Args:
    name: What to call them in a message.
    ids: Any sequence of integers.
    config: Its vocabulary.

  Returns:
    A NumPy row. [t]

  Raises:
    ValueError: If they are not one row of integers of the vocabulary.
  """
  try:
    tokens = np.asarray(ids)
  except ValueError:
    raise ValueError(f"{name} is ragged; it must be one row of ids.") from None
  if tokens.ndim != 1:
    raise ValueError(
      f"{name} has shape {tokens.shape}; it must be one row of ids."
    )
  if tokens.size and not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(f"{name} has dtype {tokens.dtype}; ids are integers.")
  wrong = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
  if wrong.size:
    raise ValueError(
      f"{name} holds id {wrong[0]}; the vocabulary is 0 to "
      f"{config.vocab_size - 1}."
    )
  return tokens.astype(np.int32)


def _kept(
  index: int,
  anchors: Several[Several[int]] | None,
  capture: Several[Several[int]] | None,
  length: int,
  chunk: int,
) -> tuple[int, ...]:
  """Captures as they are, or anchors floored to the lattice."""
  if capture is not None:
    if anchors is not None:
      raise ValueError("anchors and capture were both given; give one of them.")
    return _positions("capture", index, capture, length, chunk)
  floored = {
    position // chunk * chunk
    for position in _positions("anchors", index, anchors, length, 1)
  }
  return tuple(sorted(floored - {0}))


def _positions(
  name: str,
  index: int,
  values: Several[Several[int]] | None,
  length: int,
  chunk: int,
) -> tuple[int, ...]:
  """Positions of one request: multiples of `chunk`, 1 to `length`."""
  if values is None:
    return ()
  positions = tuple(int(position) for position in values[index])
  for position in positions:
    if not 0 < position <= length or position % chunk:
      kind = "a position" if chunk == 1 else f"a multiple of {chunk}"
      raise ValueError(
        f"{name}[{index}] holds {position}; it must be {kind} from 1 to the "
        f"prompt's {length} tokens."
      )
  return positions
