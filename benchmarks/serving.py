"""Load: users arrive by chance, with and without what a cache keeps.

    python -m benchmarks.serving --output=benchmarks/results/serving.json

Questions about shared documents and conversations that go on, as a Poisson
process, against one scheduler in real time, for every placement at every load.
Loads are shares of the rate at which a server without a cache saturates, which
is measured first: requests that wait for each other, one stream of them. The
model is the 0.8B layer group; `--preset` names another one. Answers are
compared: whatever was restored, a request that two servers answered has the
same ids.

`--peers=transformers,llama_cpp` lets others answer the same requests with the
same weights and cores (`serving_peers.py`), or tells why they cannot;
transformers needs the extra `parity`.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from benchmarks import command_line, serving_load, serving_peers
from benchmarks.record import write_result
from benchmarks.serving_load import Arrival, Load, Server
from benchmarks.serving_peers import MakePeer
from sparse_prefix_jax import HybridDecoder, PrefixCache, load_pretrained
from sparse_prefix_jax.cache.choices import checked_policy
from sparse_prefix_jax.models import ModelConfig
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes

_PRESET = flags.DEFINE_string("preset", "qwen3_5_0_8b_group", "Which model.")
_PLACEMENTS = flags.DEFINE_list(
  "placements", ["no_cache", "last", "adaptive"], "Who serves."
)
_LOADS = flags.DEFINE_list(
  "loads", ["0.4", "0.8", "1.6"], "Shares of no cache."
)
_SECONDS = flags.DEFINE_integer("seconds", 600, "Of arrivals, each.", 1)
_WARM = flags.DEFINE_integer("warm", 24, "Requests that measure the rate.", 2)
_PROMPT = flags.DEFINE_integer("document", 1024, "Tokens of a document.", 64)
_PEERS = flags.DEFINE_list("peers", [], "Who else serves.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_ROWS, _TOKEN_BUDGET = 8, 512

Answers: TypeAlias = dict[int, tuple[int, ...]]
"""Ids by the number of an arrival."""


def _server(
  config: ModelConfig, model: HybridDecoder, load: Load, placement: str
) -> Server:
  """A server with an empty cache: room for a state of every other request."""
  pages = -(-load.longest // config.numerics.chunk)
  running = (_ROWS + 2) * (pages * page_bytes(config) + 2 * state_bytes(config))
  shared = load.documents + load.conversations
  kept = shared * (pages * page_bytes(config) + 3 * state_bytes(config))
  cache = PrefixCache(model, capacity=running + kept, placement=placement)
  return Server(model, cache, load.answer, _TOKEN_BUDGET)


def _saturation(server: Server, load: Load) -> float:
  """Requests a second of a server that always has one more."""
  stream = list(serving_load.arrivals(load, 1.0, 10.0 * _WARM.value))
  stream = [x._replace(at=0.0) for x in stream[: _WARM.value]]
  start = time.monotonic()
  serving_load.serve(server, stream, 1e6)
  return len(stream) / (time.monotonic() - start)


def _compile(config: ModelConfig, server: Server, load: Load) -> None:
  """Compiles what measured servers run: every rung, then ordinary requests."""
  for rung in config.numerics.ladder:
    prompt = np.zeros(rung * config.numerics.chunk, np.int32)
    alone = [Arrival(-1, 0.0, prompt, None, False)]
    serving_load.serve(server, alone, 1e6)
  _saturation(server, load)


def _line(name: str, share: float, row: Mapping[str, float]) -> str:
  if row["answered"] == 0:
    return f"{name:14} {share:4.1f} answered none"
  return (
    f"{name:14} {share:4.1f} answered {row['answered']:4.0%} first token "
    f"{row['first_token_p50']:7.2f} {row['first_token_p95']:7.2f} s, "
    f"{1e3 * row['per_token_p50']:6.1f} ms a token, "
    f"{row['tokens_per_second']:6.1f} tokens/s, "
    f"restored {row['restored_share']:4.0%}"
  )


def _shares() -> list[float]:
  """The loads.

  Raises:
    ValueError: One is no number above 0, or there are none.
  """
  shares = []
  for text in _LOADS.value:
    share = float(command_line.number(text, f"--loads: {text!r}"))
    if not 0 < share < math.inf:
      raise ValueError(f"--loads has {text!r}; a load is above 0")
    shares.append(share)
  if not shares:
    raise ValueError("--loads needs at least one")
  return shares


def _check_placements(config: ModelConfig) -> None:
  """Before minutes of measuring.

  Raises:
    ValueError: There is no such placement, or none at all.
  """
  if not _PLACEMENTS.value:
    raise ValueError("--placements needs at least one")
  for text in _PLACEMENTS.value:
    checked_policy(text, config.numerics.chunk, None)


def _model(
  config: ModelConfig, directory: str
) -> tuple[HybridDecoder, dict[str, MakePeer | str]]:
  """The model, and for each peer what makes it, or why it cannot serve."""
  why = {x: serving_peers.why_not(x, _PRESET.value) for x in _PEERS.value}
  peers: dict[str, MakePeer | str] = {x: y for x, y in why.items() if y}
  serving = [name for name, reason in why.items() if not reason]
  if not serving:
    return HybridDecoder(config, rngs=nnx.Rngs(0)), peers
  numerics = config.numerics
  made = serving_peers.make_peers(
    serving, directory, numerics.dtype, numerics.max_length
  )
  model, _ = load_pretrained(directory, dtype=numerics.dtype, decode_rows=_ROWS)
  return model, peers | made


def _serve_peer(
  make: MakePeer, load: Load, stream: list[Arrival], answers: Answers
) -> dict[str, Any]:
  """What a peer did; its answers beside ours, which are other arithmetic."""
  served = serving_load.serve(make(load.answer), stream, _SECONDS.value / 2)
  both = [x for x in served if x.number in answers]
  same = sum(answers[x.number] == x.ids for x in both)
  shared = {"same_answers": same / len(both)} if both else {}
  return {**serving_load.summary(served, len(stream)), **shared}


def main(argv: list[str]) -> None:
  """Serves, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    config = command_line.model(_PRESET).replace(decode_rows=_ROWS)
    loads = _shares()
    _check_placements(config)
    command_line.known(_PEERS, serving_peers.PEERS)
    load = Load(document=_PROMPT.value, vocabulary=config.vocab_size)
    command_line.at_most(_PROMPT, config.numerics.max_length // 2)
    command_line.writable(_OUTPUT)
  with tempfile.TemporaryDirectory() as directory:
    model, peers = _model(config, directory)
    result = _measure(model, load, loads, peers)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, result)


def _measure(
  model: HybridDecoder,
  load: Load,
  loads: list[float],
  peers: Mapping[str, MakePeer | str],
) -> dict[str, Any]:
  """Every placement and every peer at every load."""
  config = model.config
  for placement in _PLACEMENTS.value:
    _compile(config, _server(config, model, load, placement), load)
  rate = _saturation(_server(config, model, load, "no_cache"), load)
  print(f"without a cache {rate:.3f} requests a second at most", flush=True)
  rows: list[dict[str, Any]] = []
  for share in tqdm(loads, unit="load"):
    answers: Answers = {}
    stream = list(serving_load.arrivals(load, share * rate, _SECONDS.value))
    for placement in _PLACEMENTS.value:
      server = _server(config, model, load, placement)
      served = serving_load.serve(server, stream, _SECONDS.value / 2)
      row = dict(serving_load.summary(served, len(stream)))
      differing = sum(
        answers.setdefault(x.number, x.ids) != x.ids for x in served
      )
      rows.append(
        {"placement": placement, "load": share, "requests": len(stream)}
        | row
        | {"differing_answers": differing}
      )
      tqdm.write(_line(placement, share, row))
    for name, make in peers.items():
      what: dict[str, Any] = {"peer": name, "load": share}
      if isinstance(make, str):
        rows.append(what | {"cannot": make})
        tqdm.write(f"{name:14} {share:4.1f} cannot: {make}")
        continue
      row = _serve_peer(make, load, stream, answers)
      rows.append(what | {"requests": len(stream)} | row)
      tqdm.write(_line(name, share, row))
  return {
    "preset": _PRESET.value,
    "load": load._asdict(),
    "requests_per_second_without_a_cache": rate,
    "rows": rows,
  }


if __name__ == "__main__":
  app.run(main)
