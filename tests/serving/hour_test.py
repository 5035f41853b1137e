"""An hour with one engine: asked, asked again, edited, interrupted, shared."""

import concurrent.futures
import signal

import pytest

from sparse_prefix_jax import Sampling, Scheduler
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.serving.engine import Engine
from sparse_prefix_jax.workloads.demo_corpus import load_demo_corpus
from tests.serving.engine_for_tests import demo_tokenizer, new_engine

TEXT = load_demo_corpus()[0].text
SYSTEM = {"role": "system", "content": TEXT[:200]}
WARM = Sampling(temperature=0.8, seed=4)


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


class Hour:
  """An engine whose every answer is compared with one without a cache."""

  def __init__(self):
    self.engine = new_engine()
    self.cold = new_engine(PlacementPolicy("no_cache", chunk=16))

  def ask(self, talk, sampling=WARM, **options):
    """What it answers; the same as the cold engine, id by id."""
    options = {"max_tokens": 12} | options
    (out,) = self.engine.generate([talk], sampling, **options)
    (expected,) = self.cold.generate([talk], sampling, **options)
    assert out.completions == expected.completions
    self.engine.cache.audit()
    return out


def interrupted_at(monkeypatch, number, ask):
  """Asks, and presses Ctrl-C in the midst of a step."""
  decode_step, steps = programs.decode_step, iter(range(1000))

  def pressed(*arguments):
    if next(steps) == number:
      signal.raise_signal(signal.SIGINT)
    return decode_step(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(programs, "decode_step", pressed)
    with pytest.raises(KeyboardInterrupt):
      ask()


def test_an_hour_with_one_engine(monkeypatch):
  hour = Hour()
  talk = [SYSTEM, user("What does the mill do?")]
  first = hour.ask(talk)
  assert first.restored == 0
  assert hour.ask(talk).restored > 0  # regenerated
  hour.ask(talk, Sampling(temperature=0.8, seed=5), n=3)
  talk += [assistant(first.text), user("And the pond?")]
  second = hour.ask(talk)
  assert second.restored >= 48
  edited = [*talk[:-1], user("And the gates, when the water is high?")]
  assert hour.ask(edited).restored >= second.restored - 16
  interrupted_at(monkeypatch, 5, lambda: hour.engine.generate([talk], WARM))
  assert hour.engine.cache.sequences == ()
  hour.ask(talk, stop="e")
  deltas = hour.engine.stream(talk, WARM, max_tokens=30)
  next(deltas)
  deltas.close()  # somebody stops to listen
  assert hour.engine.cache.sequences == ()
  third = hour.ask([*talk, assistant(second.text), user("Why?")])
  assert third.restored > second.restored

  def ask_thrice(thread):
    """Each with its own engine on the one cache, as two users would."""
    engine = Engine(hour.engine.model, hour.engine.cache, demo_tokenizer())
    asked = [*talk[:-1], user(f"And {thread}?")]
    return [engine.generate([asked], WARM, max_tokens=12) for _ in range(3)]

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    answers = list(pool.map(ask_thrice, range(2)))
  for thread, outs in enumerate(answers):
    asked = [*talk[:-1], user(f"And {thread}?")]
    (expected,) = hour.cold.generate([asked], WARM, max_tokens=12)
    assert all(out[0].completions == expected.completions for out in outs)
  hour.engine.cache.flush()
  assert hour.ask(talk).restored == 0
  assert hour.ask(talk, salt=b"another").restored == 0
  assert hour.ask(talk).restored > 0
  assert hour.engine.cache.sequences == ()


def test_who_is_released_after_its_stop_string_is_not_lost(monkeypatch):
  """As by a thread that replaces the weights at that moment."""
  engine, end = new_engine(), Scheduler.end
  (whole,) = engine.generate([TEXT[:200]], max_tokens=3)

  def released(scheduler, handle):
    engine.cache.release(engine.cache.sequences)
    end(scheduler, handle)

  monkeypatch.setattr(Scheduler, "end", released)
  (out,) = engine.generate([TEXT[:200]], max_tokens=9, stop=whole.text[-4:])
  assert out.text == whole.text[:-4]
  assert out.completions[0].finish_reason == "stop"
  assert engine.cache.sequences == ()
