"""What is put off to the end of a call: when it runs, and what it may raise."""

import threading

import pytest

from sparse_prefix_jax.cache.call_lock import CallLock


def free_for_others(lock):
  """Whether another thread gets the lock."""
  entered = threading.Event()

  def enter():
    with lock.held():
      entered.set()

  threading.Thread(target=enter, daemon=True).start()
  return entered.wait(10)


def test_what_is_put_off_runs_when_the_outermost_call_ends():
  lock, done = CallLock(), []
  with lock.held():
    with lock.held():
      lock.when_free(lambda: done.append("later"))
    done.append("inner")
  lock.when_free(lambda: done.append("now"))
  assert done == ["inner", "later", "now"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_what_is_put_off_keeps_nobody_out(error):
  lock, done = CallLock(), []

  def fail():
    raise error

  outcome = None
  try:
    with lock.held():
      lock.when_free(fail)
      lock.when_free(lambda: done.append("after"))
  except KeyboardInterrupt as interrupt:
    outcome = type(interrupt)
  assert outcome == (error if error is KeyboardInterrupt else None)
  assert free_for_others(lock)
  with lock.held():
    pass
  assert done == ["after"]
