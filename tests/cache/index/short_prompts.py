"""Prompts in blocks of four tokens, stored and looked up as a request would."""

from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.index import Budget, Entry, token_blocks

CHUNK = 4
ROOMY = Budget(1 << 20, slot_bytes=100, page_bytes=10)


class Stored(NamedTuple):
  """What a prompt left: its entry and the tree's numbers."""

  entry: Entry
  pages: tuple[int, ...]
  slots: dict[int, int]


def blocks_of(ids):
  return token_blocks(np.array(list(ids), np.int64), CHUNK)


def begin(index, ids, depths=(), *, salt=b""):
  """Match, pin, reserve, grow: the pin at the end, and what was grown."""
  blocks, _ = blocks_of(ids)
  match = index.match(blocks, salt=salt, limit=len(blocks))
  resumed = match.resume_blocks
  pin = index.pin(match.node, salt=salt)
  new = [depth for depth in depths if depth > resumed]
  lease = index.reserve(len(new), len(blocks) - resumed)
  slots = dict(zip(new, lease.slots))
  return index.grow(pin, blocks[resumed:], lease.pages, slots)


def store(index, ids, depths=(), *, salt=b""):
  """A whole request: what `begin` does, remembered, and unpinned."""
  blocks = blocks_of(ids)[0]
  known = index.match(blocks, salt=salt, limit=len(blocks)).pages
  grown = begin(index, ids, depths, salt=salt)
  claims = index.claim(grown.pin, depths)
  tail = blocks_of(ids)[1]
  entry = index.remember(grown.pin, tail, claims=claims)
  index.unpin(grown.pin)
  index.check()
  return Stored(
    entry, (*known, *grown.pages), {d: s.number for d, s in claims.items()}
  )


def look_up(index, ids, **arguments):
  blocks, tail = blocks_of(ids)
  return index.match(blocks, tail, **arguments)
