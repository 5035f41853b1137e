"""What a step computes of those who run, and what it books for them."""

from collections.abc import Iterator, Sequence

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.runtime.segment import Segment
from sparse_prefix_jax.serving.scheduler.life import Life
from sparse_prefix_jax.serving.scheduler.line import Line


def wanting(line: Line) -> list[Life]:
  """Whose prompt is computed, and whose answer is not.

  Args:
    line: Who runs.
  """
  done = [life for life in line.running if life.sequence.prefilled]
  return [life for life in done if life.wants_token]


def ready(line: Line) -> list[Life]:
  """Whose next token is there: a step computes with it.

  Who is judged and whose caller has to see an id first sits out.

  Args:
    line: Who runs.
  """
  return [x for x in wanting(line) if not (x.asked.judged and x.unread)]


def begun_pages(line: Line, chunk: int) -> int:
  """Pages that the tokens of a step need.

  Args:
    line: Who runs.
    chunk: Tokens of a chunk, c.
  """
  lengths = [life.sequence.length for life in ready(line)]
  return sum(length % chunk == 0 for length in lengths)


def has_room(line: Line, store: PrefixStore) -> bool:
  """Whether there are pages for the tokens of a step.

  Args:
    line: Who runs.
    store: Of the sequences.
  """
  try:
    with store.spare(0, begun_pages(line, store.chunk)):
      return True
  except CapacityError:
    return False


def segments(
  line: Line, store: PrefixStore, chunks: int
) -> Iterator[tuple[Life, Segment]]:
  """What the prefill program computes in a step.

  Args:
    line: Who runs.
    store: Of the sequences.
    chunks: Most chunks of prompts.

  Yields:
    Each request with its segment.
  """
  for life in line.running:
    one = life.sequence
    if life.over or (not one.prefilled and not chunks):
      continue
    segment = store.next_segment(one, chunks * store.chunk)
    if segment is None:
      continue
    if not one.prefilled:
      chunks -= -(-segment.tokens.size // store.chunk)
    yield life, segment


def ends_prompt(life: Life, segment: Segment) -> bool:
  """Whether an id is chosen after a segment.

  Args:
    life: Whose segment it is.
    segment: About to be dispatched.
  """
  whole = segment.stop == life.sequence.prompt_length
  return whole and not life.sequence.prefilled and life.chooses


def book_tokens(
  line: Line, store: PrefixStore, lives: Sequence[Life]
) -> Sequence[Life]:
  """Books a token for each; not for those that lack a page.

  Args:
    line: Who runs.
    store: Of the sequences.
    lives: Some of them, whose next token is there.

  Returns:
    For whom one was booked.
  """
  try:
    store.advance([life.sequence for life in lives])
  except CapacityError:  # Others hold the cache, or it would have been made.
    able = [x for x in lives if x.sequence.length % store.chunk]
    line.counts["sat_out_no_room"] += len(lives) - len(able)
    lives = able
    store.advance([life.sequence for life in lives])
  for life in lives:
    if life.last_id >= 0:
      store.append(life.sequence, life.last_id)
  return lives


def last_chunk(
  life: Life, store: PrefixStore, keep: int | None
) -> Segment | None:
  """The chunk that the last ids of a request complete, to be stored.

  An answer's last id is told and never computed with, so no step completes the
  chunk that it ends.

  Args:
    life: It ends; its last token is booked, if nothing else is missing.
    store: Of its sequence.
    keep: Tokens from the start to store; None for all.

  Returns:
    The segment; None where no chunk is complete that is not canonical already.
  """
  one, kept = life.running, life.known if keep is None else keep
  if one not in store.running or not (store.stores and one.prefilled):
    return None
  end = min(kept, life.known) // store.chunk * store.chunk
  if one.computed >= end or end - one.length not in (0, 1):
    return None
  if one.length < end:
    store.advance([one])
  if one.unread:
    store.append(one, int(life.ids.ids[end - 1]))
  return store.next_segment(one)
