"""Figures of a cache as Prometheus reads them."""

import re

import pytest

from sparse_prefix_jax import PrefixCache, prefill, prometheus_text
from sparse_prefix_jax.cache.counts import StoreStats
from tests.models_for_tests import small_model

SAMPLE = re.compile(
  r'sparse_prefix_cache_(\w+?)(\{(?:\w+="(?:[^"\\\n]|\\.)*",?)+\})? (\S+)'
)


def samples(text):
  """Values by name and labels; every other line says what a name means."""
  found = {}
  for line in text.splitlines():
    if not line.startswith("# "):
      match = SAMPLE.fullmatch(line)
      assert match, line
      name, labels, value = match.groups()
      assert (name, labels) not in found
      found[name, labels] = float(value)
  return found


@pytest.fixture(scope="module")
def stats():
  model = small_model()
  cache = PrefixCache(model, capacity=1 << 20)
  prompt = list(range(40))
  for _ in range(2):
    out = prefill(model, cache, [prompt])
    cache.release(out.sequences)
  assert out.reports[0].lost == out.reports[0].overlap - out.reports[0].resumed
  return cache.stats()


def test_every_figure_is_told_once(stats):
  found = samples(prometheus_text(stats, bound=True))
  for name in {*StoreStats._fields} - {"reasons", "lost_tokens", "recent"}:
    value = getattr(stats, name)
    told = found.get((name, None), found.get((f"{name}_total", None)))
    assert told == value
  by_reason = {k[1]: v for k, v in found.items() if k[0] == "reasons_total"}
  assert by_reason == {
    f'{{reason="{reason}"}}': count for reason, count in stats.reasons.items()
  }
  assert sum(by_reason.values()) == stats.requests == 2
  lost = {k[1]: v for k, v in found.items() if k[0] == "lost_tokens_total"}
  assert lost == {
    f'{{reason="{reason}"}}': count
    for reason, count in stats.lost_tokens.items()
  }
  assert sum(lost.values()) == stats.overlap_tokens - stats.saved_tokens
  assert found["upper_bound_tokens", None] == stats.upper_bound_tokens


def test_what_nobody_expects_is_left_out(stats):
  assert "expected_lost_tokens_total" in prometheus_text(stats)
  unknown = stats._replace(expected_lost_tokens=None, realised_lost_tokens=None)
  assert "expected" not in prometheus_text(unknown)


def test_each_name_has_a_meaning_and_a_type(stats):
  text = prometheus_text(stats)
  names = {name for name, _ in samples(text)}
  for kind in ("HELP", "TYPE"):
    said = re.findall(rf"^# {kind} sparse_prefix_cache_(\w+) ", text, re.M)
    assert sorted(said) == sorted(names)


def test_labels_are_escaped(stats):
  text = prometheus_text(stats, {"model": 'a"b\\c\nd'})
  assert '{model="a\\"b\\\\c\\nd"}' in text
  assert len(samples(text)) == len(samples(prometheus_text(stats)))


@pytest.mark.parametrize("name", ["", "1a", "a-b", "reason", "a b"])
def test_labels_that_prometheus_refuses(stats, name):
  with pytest.raises(ValueError, match="a label is named"):
    prometheus_text(stats, {name: "x"})
