import sys

import pytest

from benchmarks import deciding
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.placement import PlacementPolicy

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

ADAPTIVE = PlacementPolicy("adaptive")


def lines_of(call):
  """How many lines of Python a call runs; loops in C are not seen."""
  count = 0

  def trace(frame, event, argument):
    nonlocal count
    count += event == "line"
    return trace

  before = sys.gettrace()
  sys.settrace(trace)
  try:
    result = call()
  finally:
    sys.settrace(before)
  return count, result


def opening(tokens, entries, timed=3):
  """Lines to open one more prompt, on average."""
  store, total = deciding.new_store(ADAPTIVE, tokens, 1 << 30), 0
  stream = deciding.prompts(tokens, 10, entries + timed)
  for number, prompt in enumerate(stream):
    if number < entries:
      deciding.timed(store, prompt)
      continue
    request = Request.of_tokens(prompt, 64)
    lines, (running,) = lines_of(lambda r=request: store.open([r]))
    total += lines
    deciding.commit_all(store, running)
    store.close(running)
  return total / timed


def test_opening_grows_with_the_prompt_and_not_with_the_entries():
  """A store that is full, and has forgotten most of what it was asked."""
  few, many = opening(4096, 20), opening(4096, 90)
  assert many < 1.25 * few
  assert opening(8192, 20) < 2.25 * few


def test_a_row_tells_what_was_timed():
  row = deciding.row_of(
    ADAPTIVE, tokens=2048, capacity=2 << 30, entries=20, requests=4
  )
  assert row["entries"] == 20 and row["states_stored"] > 1
  times = row["open_milliseconds"]
  assert 0 < times["median"] <= times["p99"] <= times["max"]


@pytest.mark.parametrize("entries", [1, 1500])
def test_prompts_share_documents_and_differ(entries):
  prompts = list(deciding.prompts(2048, entries, 12))
  requests = [Request.of_tokens(prompt, 64) for prompt in prompts]
  assert {len(request.blocks) for request in requests} == {32}
  ends = {request.blocks[-1] for request in requests}
  assert len(ends) == len(requests)
  firsts = {request.blocks[0] for request in requests}
  assert len(firsts) <= max(1, entries // 500)
