import threading

import pytest

from sparse_prefix_jax.placement import background
from sparse_prefix_jax.placement.background import Job, UnderWay


def fail():
  raise OSError("no plan")


def taken(plans, now):
  found = []
  plans.take(now, found.append)
  return found


@pytest.mark.parametrize("beside", [True, False])
def test_a_plan_is_taken_once_when_it_is_due(beside):
  plans = UnderWay(background=beside)
  plans.begin(lambda: "first", due=10)
  assert taken(plans, 9) == [] and len(plans) == 1
  assert taken(plans, 10) == ["first"]
  assert taken(plans, 11) == [] and len(plans) == 0


@pytest.mark.parametrize("beside", [True, False])
def test_the_newest_of_several_is_taken(beside):
  plans, computed = UnderWay(background=beside), []
  for due in (10, 20, 30):
    plans.begin(lambda due=due: computed.append(due) or due, due=due)
  assert taken(plans, 25) == [20]
  assert len(plans) == 1 and taken(plans, 30) == [30]
  assert beside or computed == [20, 30]


@pytest.mark.parametrize("beside", [True, False])
def test_an_exception_is_raised_where_the_plan_is_taken_and_once(beside):
  plans = UnderWay(background=beside)
  plans.begin(fail, due=10)
  plans.begin(lambda: "next", due=20)
  with pytest.raises(OSError, match="no plan"):
    plans.take(10, print)
  assert taken(plans, 11) == [] and taken(plans, 20) == ["next"]


def test_a_plan_begins_when_its_request_has_been_placed():
  begun, plans = threading.Event(), UnderWay(background=True)
  plans.begin(begun.set, due=10)
  assert not begun.wait(0.05) and len(plans) == 1
  plans.go()
  assert begun.wait(10) and len(plans) == 1


def test_plans_are_given_up():
  plans = UnderWay(background=True)
  plans.begin(fail, due=10)
  plans.drop()
  assert taken(plans, 10) == [] and len(plans) == 0


def test_a_late_plan_is_waited_for_and_an_interrupted_wait_goes_on():
  begun, go_on, entered = (threading.Event() for _ in range(3))

  def late():
    begun.set()
    go_on.wait()
    return "late"

  plans = UnderWay(background=True)
  plans.begin(late, due=10)
  plans.go()
  begun.wait()
  future = plans._jobs[0]._future

  class Interrupted:
    """The future, the wait for which is interrupted once."""

    def cancel(self):
      return future.cancel()

    def result(self):
      if not entered.is_set():
        entered.set()
        raise KeyboardInterrupt
      go_on.set()
      return future.result()

  plans._jobs[0]._future = Interrupted()
  with pytest.raises(KeyboardInterrupt):
    plans.take(10, print)
  assert len(plans) == 1
  assert taken(plans, 10) == ["late"]


def test_what_was_interrupted_while_it_was_put_into_effect_is_so_again():
  plans, calls = UnderWay(background=True), []

  def adopt(plan):
    calls.append(plan)
    if len(calls) == 1:
      raise KeyboardInterrupt

  plans.begin(lambda: "plan", due=1)
  with pytest.raises(KeyboardInterrupt):
    plans.take(1, adopt)
  plans.take(1, adopt)
  assert calls == ["plan", "plan"] and len(plans) == 0


def test_all_planners_share_one_thread():
  for _ in range(20):
    assert Job(lambda: 1, due=0, background=True).result() == 1
  names = [t.name for t in threading.enumerate()]
  assert sum("sparse_prefix_jax_plans" in name for name in names) <= 1


def test_a_plan_that_has_not_begun_is_computed_by_who_needs_it():
  """It does not wait behind other planners' plans, nor twice."""
  begun, go_on = threading.Event(), threading.Event()
  blocking = Job(lambda: begun.set() or go_on.wait(), due=0, background=True)
  begun.wait()
  job = Job(threading.get_ident, due=0, background=True)
  assert job.result() == job.result() == threading.get_ident()
  go_on.set()
  assert blocking.result()


def test_without_a_thread_plans_are_computed_when_they_are_needed(monkeypatch):
  class Ended:
    def submit(self, work):
      raise RuntimeError("cannot schedule new futures after shutdown")

  monkeypatch.setattr(background, "_worker", Ended)
  job = Job(threading.get_ident, due=0, background=True)
  assert job.result() == threading.get_ident()


def test_only_plans_beside_requests_pause(monkeypatch):
  slept, begun, go_on = [], threading.Event(), threading.Event()
  monkeypatch.setattr(background, "_STRETCH", -1.0)
  monkeypatch.setattr(background.time, "sleep", slept.append)

  def pausing():
    background.pause()
    begun.set()
    go_on.wait()
    background.pause()

  background.pause()
  assert not slept
  job = Job(pausing, due=0, background=True)
  begun.wait()
  assert len(slept) == 1 and slept[0] > 0
  # Nobody has to wait for a pause.
  job.waited_for = True
  go_on.set()
  job.result()
  assert len(slept) == 1
