"""Prompts of a few tokens, stored and looked up as requests do it."""

from sparse_prefix_jax.cache.index import Budget, token_blocks

CHUNK = 4
ROOMY = Budget(10**6, slot_bytes=100, page_bytes=10)


def store(index, tokens, depths=(), *, salt=b"", chunk=CHUNK, **options):
  """Inserts as a request does: match, reserve what is missing, insert."""
  blocks, tail = token_blocks(tokens, chunk)
  stored = index.match(blocks, tail, salt=salt, touch=False).overlap_blocks
  pin = index.pin(blocks, stored, salt=salt)
  pages = (
    tuple(node.page for node in reversed([*pin.node.upwards()]))
    if pin.node
    else ()
  )
  lease = index.reserve(len(depths), len(blocks) - stored)
  done = index.insert(
    blocks,
    tail,
    (*pages, *lease.pages),
    dict(zip(depths, lease.slots)),
    salt=salt,
    **options,
  )
  index.unpin(pin)
  index.check()
  return done


def look_up(index, tokens, **options):
  """Matches as a request does."""
  return index.match(*token_blocks(tokens, CHUNK), **options)
