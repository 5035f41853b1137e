"""Sampling in a scheduler: what is drawn depends on nobody else."""

import numpy as np
import pytest

from sparse_prefix_jax import Sampling
from sparse_prefix_jax.serving.sampling import SamplingRow, sampling_rows
from sparse_prefix_jax.serving.scheduler import (
  DeviceSampler,
  Finished,
  Scheduler,
  device_sampler,
)
from tests.models_for_tests import answers, cold_runs, small_model
from tests.serving.scheduler.scenes import (
  ids,
  new_cache,
  serve,
  steps_until_idle,
)

VOCAB = 512
LONG, MIDDLE, SHORT = 3, 6, 2  # 100, 74 and 22 tokens


def even(decoded):
  """A grammar: even ids, and each at most once."""
  mask = np.arange(VOCAB) % 2 == 0
  mask[list(decoded)] = False
  return mask


ASKED = [
  (LONG, Sampling(temperature=0.9, top_p=0.9, seed=3, best=3), 0),
  (LONG, Sampling(temperature=0.9, top_p=0.9, seed=3, best=3), 1),
  (
    MIDDLE,
    Sampling(
      temperature=1.5,
      seed=5,
      repetition_penalty=1.3,
      presence_penalty=0.5,
      frequency_penalty=0.5,
    ),
    0,
  ),
  (SHORT, Sampling(repetition_penalty=2.0), 0),
  (SHORT, Sampling(temperature=1.0, allowed=even), 0),
  (MIDDLE, None, 0),
]


def submitted(scheduler, asked, size=24):
  prompt, sampling, sample = asked
  return scheduler.submit(
    answers().prompts[prompt], sampling=(sampling, sample), max_tokens=size
  )


def told(cache, scheduler):
  """Ids, log probabilities and the best ids of every request."""
  return [
    [(event.id, event.logprob, event.best) for event in events]
    for events in serve(cache, scheduler)
  ]


@pytest.mark.parametrize("swap", ["1GiB", None])
def test_what_is_drawn_is_what_each_draws_alone(swap):
  alone = []
  for asked in ASKED:
    cache = new_cache("no_cache")
    scheduler = Scheduler(small_model(), cache, token_budget=64)
    submitted(scheduler, asked)
    alone += told(cache, scheduler)
  # Pages for two of the long ones: the others make room, again and again.
  cache = new_cache(pages=20)
  scheduler = Scheduler(
    small_model(), cache, token_budget=64, swap_capacity=swap
  )
  for asked in ASKED:
    submitted(scheduler, asked)
  assert told(cache, scheduler) == alone
  counts = scheduler.counts
  assert counts["swapped_out" if swap else "dropped"] > 0
  assert alone[0] != alone[1]
  assert all(token % 2 == 0 for token, *_ in alone[4])
  assert len({token for token, *_ in alone[4]}) == len(alone[4])
  assert [len(best) for *_, best in alone[0]] == [20] * 24
  assert not any(best for *_, best in alone[2])


def test_the_most_probable_id_is_drawn_where_nothing_is_asked():
  prompt = answers().prompts[SHORT]
  cache = new_cache()
  scheduler = Scheduler(small_model(), cache, token_budget=64)
  scheduler.submit(prompt, max_tokens=1, keep_logits=True)
  ((event,),) = serve(cache, scheduler)
  logits = cold_runs().prefill(prompt).logits[-1]
  assert event.id == logits.argmax()
  exact = logits.astype(np.float64)
  assert abs(event.logprob - exact.max() + np.log(np.exp(exact).sum())) < 1e-5


def test_a_forked_sample_goes_on_by_its_own_choice():
  cache = new_cache()
  scheduler = Scheduler(small_model(), cache, token_budget=64)
  handle = submitted(scheduler, ASKED[5], 8)
  scheduler.step()
  scheduler.fork(handle, sampling=Sampling(allowed=even))
  first, second = told(cache, scheduler)
  assert all(token % 2 == 0 for token, *_ in second)
  assert len(second) in (7, 8) and first != second


def test_what_is_asked_becomes_arrays_when_somebody_comes_or_goes(monkeypatch):
  made = []

  def counted(rows, vocab_size):
    made.append([row is not None for row in rows])
    return sampling_rows(rows, vocab_size)

  monkeypatch.setattr(device_sampler, "sampling_rows", counted)
  cache = new_cache()
  scheduler = Scheduler(small_model(), cache, token_budget=64)
  for asked, size in ((ASKED[5], 20), (ASKED[0], 30)):
    submitted(scheduler, asked, size)
  found = told(cache, scheduler)
  assert [len(one) for one in found] == [20, 30]
  # One row, both, and one again; and rows behind prompts, which are others.
  assert len(made) <= 6 < 30


@pytest.mark.parametrize(
  ("row", "greedy"),
  [
    (None, True),
    (Sampling(logit_bias={1: 2.0}), True),
    (Sampling(temperature=0.1), False),
    (Sampling(best=1), False),
    (SamplingRow(Sampling(repetition_penalty=2.0), counts=0), False),
  ],
)
def test_rows_that_need_more_than_the_largest_logit_are_told(row, greedy):
  assert (
    device_sampler.are_greedy(sampling_rows([Sampling(), row], VOCAB)) == greedy
  )


@pytest.mark.parametrize(
  ("sampling", "sentence"),
  [
    (7, "sampling is 7; it must be a Sampling, None, or a Sampling and"),
    ((Sampling(), -1), "it must be a Sampling, None, or a Sampling and"),
    ((Sampling(), 0, 1), "it must be a Sampling, None, or a Sampling and"),
    (Sampling(logit_bias={VOCAB: 1.0}), "logit_bias names id 512"),
  ],
)
def test_what_is_no_choice_is_refused(sampling, sentence):
  sampler = DeviceSampler(small_model().config, 4)
  with pytest.raises(ValueError) as caught:
    sampler.check(sampling)
  assert sentence in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_grammar_that_fails_ends_its_request_and_no_other(size):
  def broken(decoded):
    if len(decoded) == size:
      raise ZeroDivisionError("no rule follows")
    return np.ones(VOCAB, bool)

  cache = new_cache()
  scheduler = Scheduler(small_model(), cache, token_budget=64)
  bad = submitted(scheduler, (SHORT, Sampling(allowed=broken), 0))
  good = submitted(scheduler, ASKED[5], 4)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  ends = {e.handle: e for e in events if isinstance(e, Finished)}
  assert len(ids(events, bad)) == size
  assert ends[bad].why == "failed"
  assert isinstance(ends[bad].error, ZeroDivisionError)
  assert ends[good].why == "length" and len(ids(events, good)) == 4
  assert cache.sequences == ()


def test_a_grammar_is_not_asked_what_follows_the_last_id():
  asked = []

  def short(decoded):
    asked.append(len(decoded))
    return np.ones(VOCAB, bool)

  cache = new_cache()
  scheduler = Scheduler(small_model(), cache, token_budget=64)
  submitted(scheduler, (SHORT, Sampling(allowed=short), 0), 3)
  (events,) = told(cache, scheduler)
  assert asked == [0, 1, 2] and len(events) == 3


def test_the_number_of_a_sample_may_be_numpy_s():
  cache = new_cache()
  scheduler = Scheduler(small_model(), cache)
  sampling = Sampling(temperature=0.9, seed=3)
  for sample in (1, np.int64(1)):
    submitted(scheduler, (SHORT, sampling, sample), size=6)
  first, second = told(cache, scheduler)
  assert first == second
