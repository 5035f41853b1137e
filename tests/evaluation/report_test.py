import collections
import json

import pytest

from sparse_prefix_jax.cache.counts import StoreStats
from sparse_prefix_jax.evaluation.meanings import meanings_of
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.evaluation.report import SimulationReport, Tally

# What the files of `simulate` have to have.
REQUIRED = {"requests", "tokens_total", "tokens_saved", "reusable_tokens"}
REQUIRED |= {"state_checkpoints_per_entry", "state_checkpoints_peak"}
SETTINGS = {"trace", "placement", "budget", "eviction", "capacity"}
SETTINGS |= {"warmup_requests", "meanings", "model", "interleave_seed"}


def report(capacity="states:3", **fields):
  return SimulationReport(
    trace="t",
    placement="last",
    budget=None,
    eviction="fifo",
    capacity=capacity,
    warmup_requests=0,
    requests=2,
    tokens_total=40,
    tokens_saved=10,
    reusable_tokens=20,
    hits=1,
    overlapping_requests=2,
    state_checkpoints_per_entry=1.5,
    state_checkpoints_peak=2,
    **fields,
  )


def test_tally_adds_up():
  tally = Tally()
  tally.add(Outcome(length=10, restored=4, overlap=6), states=2)
  tally.add(Outcome(length=20, restored=0, overlap=1), states=1)
  assert (tally.requests, tally.tokens_total, tally.tokens_saved) == (2, 30, 4)
  assert (tally.reusable_tokens, tally.states) == (7, 3)
  assert (tally.hits, tally.overlapping_requests) == (1, 2)
  assert tally.reasons == collections.Counter()
  tally.add(Outcome(5, 0, 0, reason="no_overlap"), states=0)
  assert tally.reasons == {"no_overlap": 1}
  assert [one.lost for one in tally.outcomes] == [2, 1, 0]


def test_report_goes_to_json():
  content = json.loads(json.dumps(report().to_json()))
  assert content["saved_fraction"] == 0.25
  assert content["saved_fraction_of_reusable"] == 0.5
  assert content["budget"] is None and content["bytes_peak"] is None
  assert content.keys() >= REQUIRED
  assert content["meanings"] == meanings_of("states")
  assert "outcomes" not in content


@pytest.mark.parametrize("kind", ["sequences", "states", "bytes"])
def test_every_figure_has_one_sentence_for_its_kind(kind):
  bound = None if kind == "sequences" else 16
  lost = {"expected_lost_tokens": 1.5, "realised_lost_tokens": 2}
  content = report(f"{kind}:9", upper_bound_tokens=bound, **lost).to_json()
  meanings = content["meanings"]
  assert meanings.keys() >= REQUIRED
  figures = content.keys() - SETTINGS
  if kind == "bytes":
    assert figures == meanings.keys()
  else:
    counted = {name for name in figures if content[name] is not None}
    assert counted == meanings.keys()
  for sentence in meanings.values():
    assert sentence[0].isupper() and sentence.endswith(".")
    assert "\n" not in sentence and ". " not in sentence


def test_percent_of_the_bound():
  assert report(upper_bound_tokens=16).percent_of_upper_bound == 62.5
  assert report(upper_bound_tokens=0).percent_of_upper_bound == 100
  assert report("sequences:9").percent_of_upper_bound is None


def test_what_depends_on_the_kind_says_so():
  kinds = [meanings_of(kind) for kind in ("sequences", "states", "bytes")]
  for name in (
    "tokens_saved",
    "reusable_tokens",
    "state_checkpoints_per_entry",
    "state_checkpoints_peak",
  ):
    assert len({meanings[name] for meanings in kinds}) == 3


def test_a_name_of_the_store_means_what_it_means_there():
  """Whoever adds one has to decide, and to say it in the docstring."""
  names = {*report().to_json(), *meanings_of("bytes")}
  same = {"requests", "hits", "evicted_states", "reasons"}
  same |= {"state_share", "moves", "moved_bytes", "lost_tokens"}
  same |= {"expected_lost_tokens", "realised_lost_tokens"}
  assert names & set(StoreStats._fields) == same


def test_the_table_shows_names_values_and_meanings():
  reasons = {"complete": 1, "no_overlap": 1}
  lines = report("bytes:9", evicted_states=10**9, reasons=reasons).table()
  of_one = {line.split()[0]: line.split() for line in lines.splitlines()}
  assert of_one.keys() == meanings_of("bytes").keys()
  assert of_one["tokens_total"][1] == "40"
  assert of_one["evicted_states"][1] == "1000000000"
  assert of_one["state_checkpoints_per_entry"][1] == "1.5"
  assert of_one["saved_fraction"][1] == "0.25"
  assert of_one["state_share"][1] == "none"
  assert "1 complete, 1 no_overlap  How many requests" in lines
  for name, sentence in meanings_of("bytes").items():
    assert " ".join(of_one[name]).endswith(sentence)
