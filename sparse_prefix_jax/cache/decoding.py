"""What decoding changes in a sequence: booked, read, taken back, forked.

Only `cache/store.py` calls this module.
"""

from collections.abc import Sequence

from sparse_prefix_jax.cache.canonical import grow
from sparse_prefix_jax.cache.index import PrefixIndex, token_blocks
from sparse_prefix_jax.cache.running import Running, twin_of


def book(
  index: PrefixIndex, sequences: Sequence[Running], chunk: int, exact: bool
) -> None:
  """Books one more token for each, as `PrefixStore.advance` says.

  Args:
    index: Leases a page where a chunk begins.
    sequences: Each once.
    chunk: Tokens of a chunk, c.
    exact: Whether they decode by re-running their chunk.

  Raises:
    ValueError: If a sequence has decoded in the other form, or had a token
      taken back.
    CapacityError: If there is no page for a new chunk. Nothing has changed.
  """
  for running in sequences:
    running.check_form(exact)
  begin = [r for r in sequences if r.length % chunk == 0]
  pages = index.reserve(0, len(begin)).pages
  for running, page in zip(begin, pages):
    running.pages.append(page)
  for running in sequences:
    running.length += 1
    running.exact = exact


def append(running: Running, token: int, chunk: int) -> None:
  """Notes the id of a token that was booked.

  Args:
    running: The sequence.
    token: Its id.
    chunk: Tokens of a chunk, c; the token may complete one.
  """
  running.tokens.append(token)
  if running.length % chunk == 0:
    last = running.tokens.ids[running.length - chunk : running.length]
    running.blocks += token_blocks(last, chunk)[0]


def retract(index: PrefixIndex, running: Running, chunk: int) -> None:
  """Takes the last token back, as `PrefixStore.retract` says.

  Args:
    index: Gets the page back that the token began.
    running: The sequence.
    chunk: Tokens of a chunk, c.

  Raises:
    ValueError: If nothing was decoded, or the chunk that the token completed
      is canonical; nothing has changed then.
  """
  if not running.decoded or running.computed == running.length:
    raise ValueError(
      f"{running.handle} cannot take a token back: its {running.length} tokens "
      "are its prompt, or complete canonical chunks."
    )
  if len(running.tokens) == running.length:
    running.tokens.pop()
    del running.blocks[(running.length - 1) // chunk :]
  running.length -= 1
  running.overwritten = True
  if running.length % chunk == 0:
    index.free(pages=[running.pages.pop()])


def fork(
  index: PrefixIndex, running: Running, number: int, chunk: int
) -> Running:
  """A second sequence with the same past, as `PrefixStore.fork` says.

  Args:
    index: Leases, and takes the whole chunks of the past.
    running: What is forked.
    number: Of the twin.
    chunk: Tokens of a chunk, c.

  Raises:
    CapacityError: If there is no room; nothing has changed then.
  """
  depth = running.length // chunk
  lease, pin = index.reserve(2, len(running.pages) - depth), None
  try:
    grow(index, running, depth, chunk)
    index.raise_failure()
    pin = index.pin(running.pin.node, salt=running.request.salt)
    if running.own_carry:  # Both decode from slots of their own.
      running.pin = index.spare_state(running.pin)
      pin = index.spare_state(pin)
    claims = index.claim(pin, running.claims)
    if running.entry:
      index.share(running.entry)
  except BaseException:
    index.free(lease.slots, lease.pages)
    if pin:
      index.unpin(pin)
    raise
  return twin_of(running, number, lease, pin, claims)
