import json

from sparse_prefix_jax.evaluation.report import Report, Tally


def test_tally_adds_up():
  tally = Tally()
  tally.add(length=10, saved=4, overlap=6, states=2)
  tally.add(length=20, saved=0, overlap=0, states=1)
  assert (tally.requests, tally.tokens_total, tally.tokens_saved) == (2, 30, 4)
  assert (tally.reusable_tokens, tally.hits, tally.states) == (6, 1, 3)


def test_report_goes_to_json():
  report = Report(
    trace="t",
    placement="last",
    budget=None,
    eviction="fifo",
    capacity="states:3",
    warmup_requests=0,
    requests=2,
    tokens_total=40,
    tokens_saved=10,
    reusable_tokens=20,
    hits=1,
    state_checkpoints_per_entry=1.0,
    state_checkpoints_peak=2,
  )
  content = json.loads(json.dumps(report.to_json()))
  assert content["saved_fraction"] == 0.25
  assert content["saved_fraction_of_reusable"] == 0.5
  assert content["budget"] is None and content["bytes_peak"] is None
