"""`serve`: an HTTP interface in the form of OpenAI's."""

import importlib
from pathlib import Path
from typing import Any

from absl import flags

from sparse_prefix_jax import extras, placement
from sparse_prefix_jax.whole_numbers import check_at_least

from .command_flags import share_in
from .served_model import open_served_model

_CAPACITY = "1GiB"
_PORT = 8000
_HOST = "127.0.0.1"


def serve_command(values: flags.FlagValues) -> None:
  """Serves until a signal ends it.

  Args:
    values: the flags of the command.

  Raises:
    ValueError: a flag is out of its range, an extra is not installed, or model
      and tokenizer do not belong together.
    OSError: the model or the keys cannot be read, or the address is taken.
  """
  for package in ("jinja2", "starlette", "tokenizers", "uvicorn"):
    extras.optional(package, "server")
  keys = _keys(values.api_keys)
  server = importlib.import_module("sparse_prefix_jax.serving.server.serve")
  port = _PORT if values.port is None else values.port
  counts = _counts(values)
  choices = _choices(values)
  with server.listen(values.host or _HOST, port) as listener:
    served = open_served_model(values)
    cache = importlib.import_module("sparse_prefix_jax.cache").PrefixCache(
      served.model, capacity=values.capacity or _CAPACITY, **choices
    )
    server.run_server(
      served.model,
      cache,
      served.tokenizer,
      name=served.name,
      listener=listener,
      keys=keys,
      warm_up=values.warm_up is not False,
      **counts,
    )


def _counts(values: flags.FlagValues) -> dict[str, int]:
  """The limits that are named.

  Raises:
    ValueError: one is too small.
  """
  least = {"max_running": 1, "max_waiting": 0, "token_budget": 1}
  return {
    name: check_at_least(name, values[name].value, low)
    for name, low in least.items()
    if values[name].value is not None
  }


def _choices(values: flags.FlagValues) -> dict[str, Any]:
  """How the cache places, evicts and divides, in the words of `simulate`.

  Raises:
    ValueError: there is no such choice; what depends on the model is left to
      the cache.
  """
  eviction = importlib.import_module("sparse_prefix_jax.cache.index.eviction")
  name, share = values.placement, values.state_share
  if name is not None and name not in placement.PLACEMENTS:
    raise ValueError(
      f"--placement must be one of {', '.join(placement.PLACEMENTS)}, got"
      f" {name!r}{placement.budget_hint(name)}"
    )
  if name is None and values.budget is not None:
    raise ValueError("--budget is for a --placement")
  if name is not None or values.eviction is not None:
    known = name or eviction.placement_for(values.eviction)
    eviction.eviction_for(known, values.eviction)
  if values.budget is not None:
    name = f"{name}:{values.budget}"
  return {
    "placement": name,
    "eviction": values.eviction,
    "state_share": None if share is None else share_in(share),
  }


def _keys(path: str | None) -> tuple[str, ...]:
  """The API keys of a file, one in each line; none where there is no file.

  Raises:
    ValueError: the file holds none, and so would let everybody in.
    OSError: it cannot be read.
  """
  if path is None:
    return ()
  try:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
  except UnicodeDecodeError:
    raise ValueError(f"{path} is not UTF-8") from None
  keys = tuple(line.strip() for line in lines if line.strip())
  if not keys:
    raise ValueError(f"{path} holds no API key")
  return keys
