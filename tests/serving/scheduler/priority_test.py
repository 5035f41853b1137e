"""Who waits with a higher priority gets the room of lower ones, and only it."""

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.serving.scheduler import (
  Ending,
  Finished,
  Started,
  TokenEvent,
)
from tests.serving.scheduler.scenes import (
  CHUNK,
  LONG,
  MIDDLE,
  OTHER,
  SHORT,
  endings,
  expected_ids,
  ids,
  new_cache,
  new_scheduler,
  random_tokens,
  steps_until_idle,
  submit,
)

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

ROOM = {
  "rows": ({}, {"max_running": 1}),
  "slots": ({"slots": 3}, {}),
  "pages": ({"pages": 8}, {}),
}


def run(cache, scheduler, steps):
  events = []
  for _ in range(steps):
    events += scheduler.step()
    cache.audit()
  return events


def begun(events):
  return [e.handle.number for e in events if isinstance(e, Started)]


def finish(cache, scheduler, events):
  return [*events, *(e for s in steps_until_idle(cache, scheduler) for e in s)]


@pytest.mark.parametrize("swap_capacity", [0, "1GiB"])
@pytest.mark.parametrize("short", ROOM)
def test_a_higher_one_begins_at_once_and_the_lower_one_goes_on(
  short, swap_capacity
):
  """74 tokens are 5 pages and 60 more are 9; 22 tokens are 2 pages."""
  room, fields = ROOM[short]
  cache = new_cache("no_cache", **room)
  scheduler = new_scheduler(cache, swap_capacity=swap_capacity, **fields)
  low = submit(scheduler, MIDDLE, max_tokens=50)
  events = run(cache, scheduler, 8)
  high = submit(scheduler, LONG, max_tokens=5, priority=1)
  # 100 tokens are 7 pages; the lower one holds 5 of 8.
  events += run(cache, scheduler, 1)
  assert begun(events) == [low.number, high.number]
  events += run(cache, scheduler, 7)
  assert endings(events) == {high.number: Ending.LENGTH}
  events = finish(cache, scheduler, events)
  assert ids(events, high) == expected_ids(LONG, 5)
  assert ids(events, low) == expected_ids(MIDDLE, 50)
  kind = "swapped_out" if swap_capacity else "dropped"
  assert (scheduler.counts["preempted"], scheduler.counts[kind]) == (1, 1)


@pytest.mark.parametrize("short", ROOM)
@pytest.mark.parametrize("priority", [0, -1])
def test_equals_and_higher_ones_are_left_alone(short, priority):
  room, fields = ROOM[short]
  cache = new_cache("no_cache", **room)
  scheduler = new_scheduler(cache, **fields)
  first = submit(scheduler, MIDDLE, max_tokens=20)
  events = run(cache, scheduler, 4)
  submit(scheduler, LONG, max_tokens=5, priority=priority)
  events = finish(cache, scheduler, events)
  assert scheduler.counts["preempted"] == 0
  order = [e.handle.number for e in events if isinstance(e, TokenEvent)]
  assert order == sorted(order) and first.number == 0


def test_the_lowest_and_of_these_the_youngest_makes_way():
  cache = new_cache("no_cache")
  scheduler = new_scheduler(cache, max_running=4)
  for priority in (1, 0, 1, 0):
    submit(scheduler, SHORT, max_tokens=60, priority=priority)
  events = run(cache, scheduler, 4)
  gone = []
  for _ in range(4):
    submit(scheduler, OTHER, max_tokens=60, priority=2)
    events += run(cache, scheduler, 2)
    told = {e.handle.number for e in run(cache, scheduler, 1)}
    gone += [n for n in range(4) if n not in told and n not in gone]
  assert gone == [3, 1, 2, 0]
  submit(scheduler, OTHER, max_tokens=2, priority=2)
  run(cache, scheduler, 2)
  assert scheduler.counts["preempted"] == 4  # The last one waits for equals.
  back = finish(cache, scheduler, [])
  order = []
  for event in back:
    number = event.handle.number
    if isinstance(event, TokenEvent) and number < 4 and number not in order:
      order.append(number)
  assert order == [0, 2, 1, 3]


def test_who_made_way_stays_away_while_the_higher_one_waits():
  """The higher ones come one after another; each finds the seat free."""
  cache = new_cache("no_cache")
  scheduler = new_scheduler(cache, max_running=1)
  low = submit(scheduler, MIDDLE, max_tokens=30)
  events = run(cache, scheduler, 4)
  for prompt in (SHORT, OTHER, LONG):
    submit(scheduler, prompt, max_tokens=8, priority=1)
  events = finish(cache, scheduler, events)
  order = [e.handle.number for e in events if isinstance(e, TokenEvent)]
  changes = [a for a, b in zip(order, [*order[1:], -1]) if a != b]
  assert changes == [0, 1, 2, 3, 0]
  assert scheduler.counts["preempted"] == 1
  assert ids(events, low) == expected_ids(MIDDLE, 30)


@pytest.mark.parametrize("placement", ["no_cache", "last"])
def test_nobody_makes_way_where_that_is_no_help(placement):
  """An equal one holds 7 of 10 pages; 3 are too few, whoever goes."""
  cache = new_cache(placement, pages=10)
  scheduler = new_scheduler(cache)
  submit(scheduler, LONG, max_tokens=12, priority=1)
  low = submit(scheduler, OTHER, max_tokens=12)
  events = run(cache, scheduler, 4)
  late = submit(scheduler, MIDDLE, max_tokens=3, priority=1)
  events = finish(cache, scheduler, events)
  assert scheduler.counts["preempted"] == 0
  assert ids(events, low) == expected_ids(OTHER, 12)
  assert ids(events, late) == expected_ids(MIDDLE, 3)


def test_a_prompt_that_is_half_computed_makes_way_too():
  cache = new_cache("last")
  scheduler = new_scheduler(cache, max_running=1, token_budget=CHUNK)
  low = submit(scheduler, LONG, max_tokens=4)
  events = run(cache, scheduler, 3)
  assert not cache.store.running[0].prefilled
  high = submit(scheduler, OTHER, max_tokens=4, priority=1)
  events = finish(cache, scheduler, events)
  assert ids(events, high) == expected_ids(OTHER, 4)
  assert ids(events, low) == expected_ids(LONG, 4)
  assert scheduler.counts["preempted"] == 1


def test_what_pins_hold_in_the_host_is_given_up_for_a_higher_one():
  """A swapped request keeps the pages of its stored prefix pinned."""
  cache = new_cache("last", pages=10)
  scheduler = new_scheduler(cache)
  low = submit(scheduler, LONG, max_tokens=20)
  events = run(cache, scheduler, 4)
  high = submit(scheduler, MIDDLE, max_tokens=30, priority=1)
  events += run(cache, scheduler, 2)
  assert begun(events) == [low.number, high.number]
  assert scheduler.counts["dropped"] == 1
  events = finish(cache, scheduler, events)
  assert ids(events, high) == expected_ids(MIDDLE, 30)
  assert ids(events, low) == expected_ids(LONG, 20)


def test_one_that_is_held_and_over_makes_way_for_good():
  cache = new_cache("last")
  scheduler = new_scheduler(cache, max_running=1)
  held = submit(scheduler, MIDDLE, max_tokens=3, held=True)
  busy = submit(scheduler, SHORT, max_tokens=3, priority=1)
  events = finish(cache, scheduler, [])
  assert endings(events) == {0: Ending.LENGTH, 1: Ending.LENGTH}
  assert ids(events, busy) == expected_ids(SHORT, 3)
  assert np.array_equal(ids(events, held), expected_ids(MIDDLE, 3))


def test_who_goes_on_by_what_was_read_for_another_finds_room_or_waits():
  """Two judged ones fill ten pages, and each would begin one more."""
  cache = new_cache("last", pages=10)
  scheduler = new_scheduler(cache, token_budget=256)
  for priority in (1, 0):
    prompt = random_tokens(5 * CHUNK, seed=priority)
    scheduler.submit(prompt, max_tokens=5, judged=True, priority=priority)
  events = run(cache, scheduler, 1)
  scheduler.submit(random_tokens(3), max_tokens=2, priority=1)
  events = finish(cache, scheduler, events)
  assert endings(events) == dict.fromkeys(range(3), Ending.LENGTH)
  assert scheduler.counts["preempted"] == 1


@pytest.mark.parametrize("kind", [int, np.uint8, np.uint64, np.int8])
def test_integers_of_numpy_are_priorities_like_others(kind):
  cache = new_cache("no_cache")
  scheduler = new_scheduler(cache, max_running=1)
  submit(scheduler, MIDDLE, max_tokens=kind(20))
  events = run(cache, scheduler, 4)
  submit(scheduler, SHORT, max_tokens=kind(8), priority=kind(5))
  events = finish(cache, scheduler, events)
  order = [e.handle.number for e in events if isinstance(e, Finished)]
  assert order == [1, 0] and scheduler.counts["preempted"] == 1


def test_what_fits_is_counted_without_wrapping():
  scheduler = new_scheduler(new_cache("no_cache", pages=10))
  with pytest.raises(CapacityError, match="needs 2 states and 14 pages"):
    submit(scheduler, MIDDLE, max_tokens=np.uint8(150))
