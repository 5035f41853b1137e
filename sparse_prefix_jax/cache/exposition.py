"""What a cache counts, in the text that Prometheus reads."""

import re
from collections.abc import Iterator, Mapping

from sparse_prefix_jax.cache.counts import StoreStats
from sparse_prefix_jax.kinds import check_class, check_flag

_PREFIX = "sparse_prefix_cache"

_COUNTERS = {
  "requests": "Prompts that were begun.",
  "hits": "Prompts that resumed from a state.",
  "prompt_tokens": "Tokens of the prompts.",
  "overlap_tokens": "Prompt tokens that equalled a known prefix.",
  "saved_tokens": "Prompt tokens that were not computed.",
  "captured_states": "States captured.",
  "evicted_states": "States dropped to make room.",
  "forgotten_entries": "Entries dropped to bound the host memory.",
  "moves": "Changes of the share of states.",
  "moved_bytes": "Bytes copied for those changes.",
  "expected_lost_tokens": "Known tokens of whole chunks that the placement"
  " expected to be computed again.",
  "realised_lost_tokens": "Those that were computed again.",
}

_BY_REASON = {
  "reasons": "Prompts that went no deeper, for each reason.",
  "lost_tokens": "Known tokens that were computed again, for each reason.",
}

_GAUGES = {
  "capacity_bytes": "Bytes that may be held.",
  "held_bytes": "Bytes of states and pages, stored or in use.",
  "held_slots": "State slots held.",
  "held_pages": "Pages held.",
  "stored_states": "State checkpoints that requests may resume from.",
  "entries": "Prompts that are remembered.",
  "states_per_entry": "Stored states that an entry asked for, on average.",
  "remembered_bytes": "Host memory of the prompts that are remembered.",
  "learned_bytes": "Host memory of what was learned of prefixes and cues.",
  "running": "Sequences that run.",
  "state_share": "Share of the capacity that states have, where it moves.",
}

_BOUNDS = {
  "upper_bound_tokens": "What no policy saves more than of the last prompts.",
  "percent_of_upper_bound": "What they saved, in percent of that.",
}

_LABEL = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")


def prometheus_text(
  stats: StoreStats,
  labels: Mapping[str, str] | None = None,
  *,
  bound: bool = False,
) -> str:
  """Writes the figures of a cache in Prometheus's text format, version 0.0.4.

  Args:
    stats: What `PrefixCache.stats` returned.
    labels: Names and values that every figure carries, such as the model.
    bound: Whether to tell what the last requests could have saved at most,
      which takes about a second, or a few.

  Returns:
    One line per figure, below its meaning and its type; those that are counted
    end in `_total`, and requests and the tokens that they lost are counted by
    the reason why they went no deeper, too. What nobody expects is left out.

  Raises:
    ValueError: If `stats` are none, or a label is not named as Prometheus names
      labels, or is called `reason`.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity="4MiB")
    >>> text = prometheus_text(cache.stats(), {"model": "tiny"})
    >>> text.splitlines()[2]
    'sparse_prefix_cache_requests_total{model="tiny"} 0'
  """
  check_class("stats", stats, StoreStats, "of `PrefixCache.stats`")
  if labels is not None:
    check_class("labels", labels, Mapping, "names to values")
  given = dict(labels or {})
  for name in given:
    if (
      not isinstance(name, str)
      or not _LABEL.fullmatch(name)
      or name == "reason"
    ):
      raise ValueError(
        f"a label is named {name!r}; it must be letters, digits and _, begin "
        "with a letter, and not be 'reason'."
      )
  check_flag("bound", bound)
  return "".join(line + "\n" for line in _lines(stats, given, bound))


def _lines(
  stats: StoreStats, labels: dict[str, str], bound: bool
) -> Iterator[str]:
  """Every figure that there is."""
  for name, meaning in _COUNTERS.items():
    value = getattr(stats, name)
    if value is not None:
      yield from _head(f"{name}_total", meaning, "counter")
      yield _sample(f"{name}_total", labels, value)
  for name, meaning in _BY_REASON.items():
    yield from _head(f"{name}_total", meaning, "counter")
    for reason, count in getattr(stats, name).items():
      yield _sample(f"{name}_total", labels | {"reason": reason}, count)
  for name, meaning in (_GAUGES | (_BOUNDS if bound else {})).items():
    value = getattr(stats, name)
    if value is not None:
      yield from _head(name, meaning, "gauge")
      yield _sample(name, labels, value)


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
  """What stands above a figure."""
  yield f"# HELP {_PREFIX}_{name} {meaning}"
  yield f"# TYPE {_PREFIX}_{name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: int | float) -> str:
  """One figure."""
  given = ",".join(f'{key}="{_escaped(v)}"' for key, v in labels.items())
  braced = f"{{{given}}}" if given else ""
  return f"{_PREFIX}_{name}{braced} {value}"


def _escaped(value: str) -> str:
  """A label's value between quotes."""
  return (
    str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
  )
