"""What of a sequence is canonical joins the tree: for commit, fork and close.

Only `cache/store.py` calls this module.
"""

from sparse_prefix_jax.cache.index import (
  PrefixIndex,
  Renumbering,
  token_blocks,
)
from sparse_prefix_jax.cache.running import NO_SLOT, Running
from sparse_prefix_jax.runtime.segment import Segment


def slot_at(
  running: Running, position: int, segment: Segment, chunk: int
) -> int:
  """Where the carry at a position lies after a segment.

  Args:
    running: Its pin is at the last whole chunk of the segment.
    position: One that the segment writes.
    segment: What was dispatched.
    chunk: Tokens of a chunk, c.

  Returns:
    The tree's slot where it has a state there, else the slot written.
  """
  pin = running.pin
  if pin.state and pin.depth * chunk == position:
    return pin.state.number
  return segment.writes[position]


def grow(
  index: PrefixIndex,
  running: Running,
  depth: int,
  chunk: int,
  *,
  give_own: bool = False,
) -> None:
  """Gives whole chunks up to a depth to the tree, with the states captured.

  Args:
    index: Takes them.
    running: Its pin moves to the depth.
    depth: In chunks, at least the pin's.
    chunk: Tokens of a chunk, c.
    give_own: Whether the sequence's own slot holds the state at the depth, and
      becomes the tree's: the sequence ends.
  """
  first = running.pin.depth
  within = [p for p in running.captures if p <= depth * chunk]
  slots = {p // chunk: running.captures[p] for p in within}
  if give_own:
    slots[depth] = running.own_slot
  grown = index.grow(
    running.pin,
    running.blocks[first:depth],
    running.pages[first:depth],
    slots,
  )
  running.pin = grown.pin
  running.pages[first:depth] = grown.pages
  running.stored = max(running.stored, depth)
  for position in within:
    del running.captures[position]
  if give_own:
    running.own_slot = NO_SLOT


def _kept_depths(running: Running, chunk: int) -> set[int]:
  """Where a prompt keeps states, or captures them for others, in chunks."""
  return {p // chunk for p in (*running.kept, *running.captured)}


def remember_prompt(index: PrefixIndex, running: Running, chunk: int) -> None:
  """Claims the states that a prompt keeps, and remembers it.

  Args:
    index: Where its states are.
    running: All of its prompt is computed.
    chunk: Tokens of a chunk, c.
  """
  running.claims = index.claim(running.pin, _kept_depths(running, chunk))
  running.entry = index.remember(
    running.pin,
    running.request.tail,
    claims=running.claims,
    features=running.features,
  )
  index.refuse(running.pin, {p // chunk for p in running.asked})


def commit_prompt(
  index: PrefixIndex,
  running: Running,
  segment: Segment,
  chunk: int,
  *,
  stores: bool,
) -> None:
  """Notes what a segment of a prompt computes; after the last it is remembered.

  Args:
    index: Takes whole chunks, with the states captured in them.
    running: The sequence.
    segment: What was dispatched.
    chunk: Tokens of a chunk, c.
    stores: Whether anything outlives the sequence.
  """
  if stores:
    grow(index, running, segment.stop // chunk, chunk)
  running.computed = segment.stop
  running.carry_slot = slot_at(running, segment.stop, segment, chunk)
  last = running.prompt_length // chunk * chunk
  if segment.start < last <= segment.stop:
    running.lattice_slot = slot_at(running, last, segment, chunk)
  if running.computed == running.prompt_length and stores:
    remember_prompt(index, running, chunk)


def commit_decoded(
  index: PrefixIndex, running: Running, segment: Segment, chunk: int
) -> None:
  """Notes what a segment of decoded tokens computes, perhaps a whole chunk.

  From a whole chunk on it decodes from its own slot, so the state where its
  prompt ends is stored like any other, and may make room.

  Args:
    index: Where its pin is.
    running: The sequence; the chunk stays its own until it is closed.
    segment: What was dispatched.
    chunk: Tokens of a chunk, c.
  """
  running.computed = segment.stop
  if segment.stop % chunk == 0:
    running.lattice_slot = running.own_slot
    running.pin = index.spare_state(running.pin)


def store_past(
  index: PrefixIndex, running: Running, kept: int, chunk: int
) -> None:
  """Stores the first tokens of a sequence that ends, with their states.

  Args:
    index: Where they go.
    running: It computes nothing more.
    kept: Tokens from the start, 0 to all.
    chunk: Tokens of a chunk, c.
  """
  if not running.prefilled:
    _take_back(index, running, kept // chunk, chunk)
    return
  depth = kept // chunk
  if running.decoded and depth == running.length // chunk:
    _give_own_state(index, running, depth, chunk)
  elif depth > running.pin.depth:
    grow(index, running, depth, chunk)
  entry = running.entry
  if kept == running.prompt_length and entry is not None and entry in index:
    entry.claims |= running.claims
    return
  taken_back = [running.claims.pop(d) for d in [*running.claims] if d > depth]
  _move_pin(index, running, depth)
  _replace_entry(index, running, kept, chunk)
  index.unclaim(taken_back)


def _take_back(
  index: PrefixIndex, running: Running, depth: int, chunk: int
) -> None:
  """Drops what a prompt that is not computed to its end keeps beyond a depth.

  It claims nothing yet; what others claim or hold stays.
  """
  if depth >= running.pin.depth:
    return
  beyond = {d for d in _kept_depths(running, chunk) if d > depth}
  claims = index.claim(running.pin, beyond)
  _move_pin(index, running, depth)
  index.unclaim(claims.values())


def _give_own_state(
  index: PrefixIndex, running: Running, depth: int, chunk: int
) -> None:
  """Passes the state at the last lattice point to the tree, and claims it.

  Those that the prompt captured go on probation then, unless somebody resumed
  from them: whoever goes on resumes from the new one.
  """
  given = running.own_carry and depth > 0
  grow(index, running, depth, chunk, give_own=given)
  if given:
    captured = [p // chunk for p in running.captured]
    index.demote(running.claims[d] for d in captured if d in running.claims)
  claimed = running.claims.get(depth)
  if claimed is None or not claimed.alive:
    # The tree's may be another's: it stays when that one takes it back.
    running.claims |= index.claim(running.pin, [depth])


def _move_pin(index: PrefixIndex, running: Running, depth: int) -> None:
  """Moves the pin up to a depth, so that what lies beyond is free."""
  node = running.pin.node.at_depth(depth) if running.pin.node else None
  pin = index.pin(node if depth else None, salt=running.request.salt)
  index.unpin(running.pin)
  running.pin = pin


def _replace_entry(
  index: PrefixIndex, running: Running, kept: int, chunk: int
) -> None:
  """The entry of the tokens that are kept takes the place of the prompt's."""
  before, running.entry = running.entry, None
  if kept:
    features = running.features
    ids = running.tokens.ids[kept // chunk * chunk : kept]
    running.entry = index.remember(
      running.pin,
      token_blocks(ids, chunk)[1],
      claims=running.claims,
      features=features and features._replace(length=kept),
    )
  if before is not None:
    index.forget(before)


def renumber(running: Running, moved: Renumbering) -> None:
  """Puts new numbers in the place of old ones in a sequence.

  Args:
    running: The sequence.
    moved: New numbers by old ones.
  """
  slots, pages = moved.slots, moved.pages
  running.pages = [pages.get(page, page) for page in running.pages]
  running.captures = {p: slots.get(s, s) for p, s in running.captures.items()}
  running.running_slot = slots.get(running.running_slot, running.running_slot)
  running.own_slot = slots.get(running.own_slot, running.own_slot)
  running.lattice_slot = slots.get(running.lattice_slot, running.lattice_slot)
  running.carry_slot = slots.get(running.carry_slot, running.carry_slot)
