"""A running sequence: what a caller holds of it, and what the cache knows."""

import dataclasses

import numpy as np

from sparse_prefix_jax.cache.index import Entry, Pin
from sparse_prefix_jax.placement import Features


@dataclasses.dataclass(frozen=True)
class Sequence:
  """Handle of a running sequence, as `prefill` and `decode` return it.

  A handle is used once: `decode` returns the next one, `release` ends it. It
  holds no array; the cache that made it does.

  Attributes:
    number: Which sequence; no two of a process have the same.
    length: Tokens processed so far, prompt and decoded.
  """

  number: int
  length: int


@dataclasses.dataclass
class Running:
  """What a sequence owns and pins until it is released.

  Attributes:
    salt: The tenant.
    tokens: All ids so far.
    pages: Page of every chunk begun, in order.
    running_slot: Leased slot of the carry inside a chunk.
    own_slot: Leased slot for lattice carries of its own.
    lattice_slot: Slot of the carry at the last lattice point: its own, one of
      the tree that is pinned, or ZERO (-1).
    stored: Leading chunks whose pages the tree owns.
    pin: Protects those, and the lattice slot where the tree owns it.
    entry: What was inserted for it, if anything.
    anchors: Lattice positions that its entry keeps besides the placement's.
    placed: Whether the placement has a say; not if captures were given.
    decoded: Whether decoding completed a chunk, so that release stores it.
    exact: Whether it decodes by re-running its chunk; None before it decodes.
    features: What the placement knows of its prompt.
  """

  salt: bytes
  tokens: np.ndarray
  pages: list[int]
  running_slot: int
  own_slot: int
  lattice_slot: int
  stored: int = 0
  anchors: tuple[int, ...] = ()
  placed: bool = True
  pin: Pin | None = None
  entry: Entry | None = None
  decoded: bool = False
  exact: bool | None = None
  features: Features | None = None

  @property
  def length(self) -> int:
    """Tokens processed so far."""
    return self.tokens.size

  def leased_pages(self) -> list[int]:
    """Pages that no tree owns."""
    return self.pages[self.stored :]
