"""The plan: the one thing that passes from host to device for a prefill."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparse_prefix_jax.kernels.chunks import CARRY, NONE, Chunks
from sparse_prefix_jax.kernels.lattice_attention import BLOCK_PAGES
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.runtime.programs import Group
from sparse_prefix_jax.runtime.segment import Segment


@dataclasses.dataclass(frozen=True)
class Plan:
  """Packed chunks of several requests, in NumPy, checked when it is built.

  Attributes:
    tokens: The token ids of each chunk, padded with 0. [n c]
    read: The slot that each chunk resumes from, ZERO or CARRY. [n]
    write: The slot that receives the state after the chunk, or NONE. [n]
    length: How many real tokens each chunk has. [n]
    position: The absolute position of its first token. [n]
    request: The number of its segment. [n]
    spill: The slot of each segment for a cut between programs. [requests]
    page_table: The pages of each segment. [requests pages]
    slots: How many slots the pools have.
    pages: How many pages the pools have.
  """

  tokens: np.ndarray
  read: np.ndarray
  write: np.ndarray
  length: np.ndarray
  position: np.ndarray
  request: np.ndarray
  spill: np.ndarray
  page_table: np.ndarray
  slots: int
  pages: int

  def __post_init__(self) -> None:
    """Refuses a plan that breaks a rule of the kernel contract.

    Raises:
      ValueError: If it does; the sentence names the array, the chunk and the
        rule.
    """
    self._check_ranges()
    self._check_order()
    self._check_slots()
    self._check_spill()
    self._check_pages()

  def _check_ranges(self) -> None:
    c, (rows, width) = self.tokens.shape[1], self.page_table.shape
    kept = self.write[self.write != NONE]
    rules = (
      ("read", self.read, CARRY, self.slots - 1, "a slot, ZERO or CARRY"),
      ("write", kept, 0, self.slots - 1, "a slot or NONE"),
      ("length", self.length, 0, c, f"0 to {c}"),
      ("position", self.position, 0, c * (width - 1), f"below {c * width}"),
      ("request", self.request, 0, rows - 1, "a row of page_table"),
      ("page_table", self.page_table, 0, self.pages - 1, "a page"),
    )
    for name, values, low, high, allowed in rules:
      wrong = values[(values < low) | (values > high)]
      if wrong.size:
        raise ValueError(
          f"plan: {name} holds {wrong[0]}; it must be {allowed}."
        )
    if np.any(self.position % c):
      raise ValueError(f"plan: position must be a multiple of {c} everywhere.")

  def _check_order(self) -> None:
    """Chunks of a request stand together, in order, inactive ones last."""
    c = self.tokens.shape[1]
    active = self.length > 0
    if np.any(active[1:] & ~active[:-1]):
      raise ValueError("plan: an inactive chunk stands before an active one.")
    follows = np.zeros(active.shape, bool)
    follows[1:] = (self.request[1:] == self.request[:-1]) & active[1:]
    carry = (self.read == CARRY) & active
    if np.any(carry & ~follows):
      index = int(np.argmax(carry & ~follows))
      raise ValueError(
        f"plan: read of chunk {index} is CARRY, but it does not follow a chunk "
        "of the same request."
      )
    steps = np.diff(self.position)
    broken = follows[1:] & ((self.length[:-1] != c) | (steps != c))
    if np.any(broken | (follows[1:] & ~carry[1:])):
      raise ValueError(
        "plan: chunks of one request must stand in order, all but the last "
        "full, and read CARRY after the first."
      )
    first = self.request[active & ~follows]
    if np.unique(first).size != first.size:
      raise ValueError("plan: the chunks of a request must stand together.")

  def _check_slots(self) -> None:
    """No slot is written twice, or written by one and read by another."""
    writes = self.write != NONE
    written, owner = self.write[writes], self.request[writes]
    if np.unique(written).size != written.size:
      raise ValueError("plan: write names a slot twice.")
    writer = dict(zip(written.tolist(), owner.tolist(), strict=True))
    reads = self.read >= 0
    for slot, request in zip(
      self.read[reads].tolist(), self.request[reads].tolist(), strict=True
    ):
      if writer.get(slot, request) != request:
        raise ValueError(
          f"plan: slot {slot} is written by request {writer[slot]} and read by "
          f"request {request}."
        )

  def _check_spill(self) -> None:
    """A spill slot holds nothing that another request or a capture needs."""
    for request in np.unique(self.request[self.read == CARRY]).tolist():
      slot = int(self.spill[request])
      if not 0 <= slot < self.slots:
        raise ValueError(
          f"plan: spill of request {request} is {slot}; it must be a slot."
        )
      own = self.request == request
      # Its last write may be the spill slot: nothing is carried after it.
      captured = np.flatnonzero(self.write == slot)
      last = np.flatnonzero(own)[-1]
      taken = np.any(captured != last) or np.any(self.read[~own] == slot)
      if taken:
        raise ValueError(
          f"plan: spill slot {slot} of request {request} is also captured to, "
          "or read by another request."
        )

  def _check_pages(self) -> None:
    """Every active chunk writes a page of its own."""
    active = self.length > 0
    chunk = self.position[active] // self.tokens.shape[1]
    written = self.page_table[self.request[active], chunk]
    if np.unique(written).size != written.size:
      raise ValueError("plan: two chunks write the same page.")

  def groups(self, ladder: Sequence[int]) -> Iterator[tuple[range, Group]]:
    """Cuts the plan into inputs of the prefill programs.

    A request that is cut writes its spill slot at the end of one program and
    reads it at the start of the next: the same bits as the carry.

    Yields:
      The range of chunks, and the program's input, whose size is a rung.
    """
    start, total = 0, self.length.size
    for rung in rungs(total, ladder):
      chunks = range(start, min(start + rung, total))
      yield chunks, self._group(chunks, rung)
      start += rung

  def _group(self, chunks: range, rung: int) -> Group:
    first, stop = chunks.start, chunks.stop
    part = slice(first, stop)
    read, write = self.read[part].copy(), self.write[part].copy()
    if read[0] == CARRY:
      before = self.write[first - 1]
      spill = self.spill[self.request[first]]
      read[0] = spill if before == NONE else before
    cut = stop < self.length.size and self.read[stop] == CARRY
    if cut and write[-1] == NONE:
      write[-1] = self.spill[self.request[stop]]
    return Group(
      tokens=_padded(self.tokens[part], rung, 0),
      chunks=Chunks(
        read=_padded(read, rung, CARRY),
        write=_padded(write, rung, NONE),
        length=_padded(self.length[part], rung, 0),
        position=_padded(self.position[part], rung, 0),
        # Each chunk has a row of the page table of its own.
        request=_padded(np.arange(rung, dtype=np.int32), rung, 0),
      ),
      page_table=_padded(self.page_table[self.request[part]], rung, 0),
    )


def _padded(values: np.ndarray, rung: int, fill: int) -> Any:
  """The values, with others behind them where there are fewer than a rung.

  They stay on the host: a program brings its arguments to its device itself, in
  a tenth of the time that `jax.device_put` takes to.
  """
  if len(values) == rung:
    return values
  padded = np.full((rung, *values.shape[1:]), fill, values.dtype)
  padded[: len(values)] = values
  return padded


def build_plan(
  config: ModelConfig, segments: Sequence[Segment], *, slots: int, pages: int
) -> Plan:
  """Packs the chunks of all segments, in order.

  Args:
    config: Gives the chunk length and the longest sequence.
    segments: What to compute of each request; at least one.
    slots: How many slots the pools have.
    pages: How many pages the pools have.

  Raises:
    ValueError: If a rule of the kernel contract is broken.
  """
  c = config.numerics.chunk
  for index, segment in enumerate(segments):
    _check_segment(c, index, segment)
  counts = [-(-len(s.tokens) // c) for s in segments]
  n = sum(counts)
  tokens = np.zeros((n, c), np.int32)
  length = np.full(n, c, np.int32)
  position = np.zeros(n, np.int32)
  read = np.full(n, CARRY, np.int32)
  write = np.full(n, NONE, np.int32)
  request = np.repeat(np.arange(len(segments), dtype=np.int32), counts)
  first = 0
  for segment, count in zip(segments, counts, strict=True):
    stop = first + count
    flat = tokens[first:stop].reshape(-1)
    flat[: len(segment.tokens)] = segment.tokens
    length[stop - 1] = len(segment.tokens) - (count - 1) * c
    position[first:stop] = segment.start + c * np.arange(count)
    read[first] = segment.read
    ends = position[first:stop] + length[first:stop]
    write[first:stop] = [segment.writes.get(int(e), NONE) for e in ends]
    first = stop
  return Plan(
    tokens=tokens,
    read=read,
    write=write,
    length=length,
    position=position,
    request=request,
    spill=np.array([s.spill for s in segments], np.int32),
    page_table=page_table(config, [s.pages for s in segments]),
    slots=slots,
    pages=pages,
  )


def _check_segment(chunk: int, index: int, segment: Segment) -> None:
  """Refuses what packing would lose: no tokens, pages or ends of chunks."""
  end = segment.start + len(segment.tokens)
  if end == segment.start:
    raise ValueError(f"segment {index} has no tokens; it needs at least one.")
  if len(segment.pages) < -(-end // chunk):
    raise ValueError(
      f"segment {index} has {len(segment.pages)} pages; its {end} tokens need "
      f"{-(-end // chunk)}."
    )
  # What lies before the first chunk is held already and asks for nothing.
  for position in segment.writes:
    off = position % chunk and position != end
    if position > segment.start and (off or position > end):
      raise ValueError(
        f"segment {index} writes at {position}; it must be a multiple of "
        f"{chunk} or the end, {end}."
      )


def page_table(
  config: ModelConfig, pages: Sequence[Sequence[int]]
) -> np.ndarray:
  """Makes a table of the pages of each row, as wide as the longest sequence.

  Args:
    config: Gives the longest sequence; the width is a multiple of BLOCK_PAGES.
    pages: The pages of each row, chunk by chunk.

  Returns:
    Page numbers [b pages]; page 0 stands where a row has no more, and is masked
    there.
  """
  widest = -(-config.numerics.max_length // config.numerics.chunk)
  width = -(-widest // BLOCK_PAGES) * BLOCK_PAGES
  table = np.zeros((len(pages), width), np.int32)
  for row, row_pages in zip(table, pages, strict=True):
    row[: len(row_pages)] = row_pages
  return table


def rungs(chunks: int, ladder: Sequence[int]) -> Iterator[int]:
  """Yields the sizes of programs that together hold that many chunks.

  It takes the largest rung as long as it is full; then the smallest that holds
  the rest, if that wastes at most a quarter of it, otherwise the largest that
  is full.

  Example:
    >>> list(rungs(37, (1, 2, 4, 8, 16)))
    [16, 16, 4, 1]
    >>> list(rungs(15, (1, 2, 4, 8, 16)))
    [16]
  """
  while chunks > 0:
    enough = [r for r in ladder if r >= chunks]
    full = [r for r in ladder if r <= chunks]
    snug = enough and 4 * chunks >= 3 * enough[0]
    rung = enough[0] if enough and (snug or not full) else full[-1]
    yield rung
    chunks -= rung
