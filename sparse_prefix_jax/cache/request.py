"""What was asked: a prompt as the store sees it, checked before anything runs.

A request is block keys, a tail and a length, so that a stream of hashed blocks
takes the same verbs as token ids.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from sparse_prefix_jax.cache.index import common_blocks, token_blocks
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.whole_numbers import check_whole

_NO_IDS = np.zeros(0, np.int32)
_LONGEST_SALT = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """One prompt.

  Attributes:
    length: Its tokens.
    blocks: Keys of its whole chunks.
    tail: Key of the tokens after them.
    ids: Token ids, int32; empty where only hashes of blocks are known. [t]
    anchors: Lattice positions worth a state besides the placement's, or
      instead of it where `placed` is false.
    placed: Whether the placement has a say; not if captures were given.
    observed: Whether the placement has learned from it already; an overlap
      counts once.
    salt: The tenant; requests with different salts share nothing.
    index: Its place in the batch.
  """

  length: int
  blocks: Sequence[Hashable]
  tail: bytes = b""
  ids: np.ndarray = dataclasses.field(default_factory=lambda: _NO_IDS)
  anchors: tuple[int, ...] = ()
  placed: bool = True
  observed: bool = False
  salt: bytes = b""
  index: int = 0

  @classmethod
  def of_tokens(cls, ids: np.ndarray, chunk: int, **fields: Any) -> "Request":
    """The request of a row of checked token ids.

    Args:
      ids: Int32, at least one. [t]
      chunk: Tokens of a chunk, c.
      **fields: The other attributes.

    >>> request = Request.of_tokens(np.arange(5, dtype=np.int32), chunk=2)
    >>> request.length, len(request.blocks), len(request.tail)
    (5, 2, 4)
    """
    blocks, tail = token_blocks(ids, chunk)
    return cls(ids.size, blocks, tail, ids, **fields)

  def shared_chunks(self, other: "Request", chunk: int) -> int:
    """Leading chunks that both share and this one could resume after."""
    if self.salt != other.salt:
      return 0
    limit = (self.length - 1) // chunk
    return min(limit, common_blocks(self.blocks, other.blocks, 0))


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a prompt of one model may be.

  Attributes:
    vocab_size: Ids are below it.
    max_length: Longest sequence in tokens.
    chunk: Tokens of a chunk, c.
  """

  vocab_size: int
  max_length: int
  chunk: int


def check_requests(
  limits: Limits,
  prompts: Sequence[Any],
  anchors: Sequence[Sequence[int]] | None = None,
  capture: Sequence[Sequence[int]] | None = None,
  salt: str | bytes = b"",
) -> list[Request]:
  """The requests of a batch, each checked before any of them runs.

  Args:
    limits: Of the model.
    prompts: Token ids per request.
    anchors: Positions per request, or None.
    capture: Lattice points per request, or None.
    salt: The tenant of the whole batch; a text is its UTF-8.

  Returns:
    The requests, in the order of the prompts.

  Raises:
    ValueError: Naming the argument, what it was and what is allowed.
  """
  salt = _checked_salt(salt)
  if anchors is not None and capture is not None:
    raise ValueError("anchors and capture were both given; give one of them.")
  prompts = _list_of("prompts", prompts)
  name, rows = ("anchors", anchors) if capture is None else ("capture", capture)
  rows = [None] * len(prompts) if rows is None else _list_of(name, rows)
  if len(rows) != len(prompts):
    raise ValueError(
      f"{name} has {len(rows)} entries for {len(prompts)} prompts; it needs "
      "one per prompt."
    )
  return [
    _checked(
      limits,
      (f"prompts[{index}]", prompt),
      (f"{name}[{index}]", rows[index]),
      salt,
      placed=capture is None,
      index=index,
    )
    for index, prompt in enumerate(prompts)
  ]


def check_request(
  limits: Limits,
  prompt: Any,
  anchors: Sequence[int] | None = None,
  salt: str | bytes = b"",
) -> Request:
  """The request of one prompt; messages call it `prompt`.

  Args:
    limits: Of the model.
    prompt: Token ids.
    anchors: Positions, or None.
    salt: The tenant; a text is its UTF-8.

  Raises:
    ValueError: As `check_requests`.
  """
  named = ("prompt", prompt), ("anchors", anchors)
  return _checked(limits, *named, _checked_salt(salt))


def _checked_salt(salt: Any) -> bytes:
  """A tenant as bytes."""
  if isinstance(salt, str):
    # A lone surrogate, as of a damaged header, is a tenant too.
    salt = salt.encode(errors="surrogatepass")
  if not isinstance(salt, bytes):
    raise ValueError(f"salt must be a text or bytes, got {brief(salt)}.")
  if len(salt) > _LONGEST_SALT:
    raise ValueError(
      f"salt has {len(salt)} bytes; it must have at most {_LONGEST_SALT}, a "
      "digest of something longer."
    )
  return salt


def _list_of(
  name: str, values: Any, of: str = "with one entry per request"
) -> list[Any]:
  """What a sequence holds; anything else is refused."""
  plain = isinstance(values, str | bytes | Mapping | Set)
  if plain or not hasattr(values, "__len__"):
    raise ValueError(f"{name} must be a sequence {of}, got {brief(values)}.")
  if getattr(values, "ndim", 1) == 0:
    raise ValueError(f"{name} must be a sequence, got a scalar array.")
  try:
    return list(values)
  except (TypeError, RuntimeError):  # A shape alone; an array that is deleted.
    kind = type(values).__name__
  raise ValueError(
    f"{name} has no values ({kind}); it must be a sequence {of}."
  )


def _checked(
  limits: Limits,
  prompt: tuple[str, Any],
  positions: tuple[str, Sequence[int] | None],
  salt: bytes,
  *,
  placed: bool = True,
  index: int = 0,
) -> Request:
  """One request, of arguments with their names; not placed are captures."""
  ids = check_tokens(*prompt, limits)
  name, values = positions
  wished: tuple[int, ...] = ()
  if values is not None:
    step = 1 if placed else limits.chunk
    wished = _positions(name, values, ids.size, step)
  kept = {p // limits.chunk * limits.chunk for p in wished} - {0}
  return Request.of_tokens(
    ids,
    limits.chunk,
    anchors=tuple(sorted(kept)),
    placed=placed,
    salt=salt,
    index=index,
  )


def check_tokens(name: str, prompt: Any, limits: Limits) -> np.ndarray:
  """The ids of a prompt as int32.

  Args:
    name: What to call them in a message.
    prompt: Any sequence of integers.
    limits: Vocabulary and longest sequence.

  Returns:
    A NumPy row. [t]

  Raises:
    ValueError: As `check_ids`, and if there are none or too many.
  """
  tokens = check_ids(name, prompt, limits.vocab_size)
  if tokens.size == 0:
    raise ValueError(f"{name} is empty; a prompt has at least one token.")
  if tokens.size > limits.max_length:
    raise ValueError(
      f"{name} has {tokens.size} tokens; max_length of the model's "
      f"configuration is {limits.max_length}."
    )
  return tokens


def check_ids(name: str, ids: Any, vocab_size: int) -> np.ndarray:
  """Token ids as int32, any number of them.

  Args:
    name: What to call them in a message.
    ids: Any sequence of integers.
    vocab_size: Ids are below it.

  Returns:
    A NumPy row. [t]

  Raises:
    ValueError: If they are not one row of integers of the vocabulary.
  """
  tokens = _array(name, ids)
  if tokens.ndim != 1:
    raise ValueError(
      f"{name} has shape {tokens.shape}; it must be one row of ids, such as "
      "[1, 2, 3]."
    )
  # timedelta64 counts as a signed integer in NumPy's hierarchy, hence kinds.
  if tokens.size and tokens.dtype.kind not in "iu":
    # Of integers past 64 bits NumPy makes floats or objects.
    if not all(type(token) is int for token in ids):
      raise ValueError(f"{name} has dtype {tokens.dtype}; ids are integers.")
    tokens = np.array(ids, object)
  tokens = tokens if tokens.size else tokens.astype(np.int32)
  wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
  if wrong.size:
    raise ValueError(
      f"{name} holds id {brief(int(wrong[0]))}; the vocabulary is 0 to "
      f"{vocab_size - 1}."
    )
  return tokens.astype(np.int32)


def _array(name: str, ids: Any) -> np.ndarray:
  """What NumPy makes of ids; one sentence where it makes nothing."""
  if isinstance(ids, np.ma.MaskedArray):
    raise ValueError(f"{name} is a masked array; ids must all be there.")
  try:
    return np.asarray(ids)
  except (ValueError, TypeError, OverflowError, RuntimeError) as error:
    traced = type(error).__name__.startswith("Tracer")  # JAX's own, unimported
  if traced:
    raise ValueError(
      f"{name} is traced: prefill and decode are called outside of jit."
    )
  wrong = "is ragged"
  if hasattr(ids, "dtype"):  # Deleted, or keys of random numbers.
    wrong = f"has no values ({type(ids).__name__})"
  raise ValueError(f"{name} {wrong}; it must be one row of ids.")


def listed(values: Any) -> list[Any] | None:
  """What can be gone through once or often, as a list; None of anything else.

  >>> listed(x for x in "ab"), listed(np.array(3))
  (['a', 'b'], None)
  """
  try:
    return list(values)
  except TypeError:  # An array without dimensions calls itself iterable.
    return None


def _positions(
  name: str, values: Any, length: int, step: int
) -> tuple[int, ...]:
  """Positions of one request: multiples of `step`, 1 to `length`."""
  values = _list_of(name, values, of="of positions")
  positions = tuple(
    check_whole(f"{name}[{i}]", p) for i, p in enumerate(values)
  )
  for position in positions:
    if not 0 < position <= length or position % step:
      kind = "a position" if step == 1 else f"a multiple of {step}"
      raise ValueError(
        f"{name} holds {brief(position)}; it must be {kind} from 1 to the "
        f"prompt's {length} tokens."
      )
  return positions
