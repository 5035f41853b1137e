"""`serve`: an HTTP interface in the form of OpenAI's."""

import importlib
from pathlib import Path

from absl import flags

from sparse_prefix_jax import extras

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
  for package in ("starlette", "uvicorn"):
    extras.optional(package, "server")
  keys = _keys(values.api_keys)
  server = importlib.import_module("sparse_prefix_jax.serving.server.serve")
  port = _PORT if values.port is None else values.port
  counts = {
    name: values[name].value
    for name in ("max_running", "max_waiting")
    if values[name].value is not None
  }
  with server.listen(values.host or _HOST, port) as listener:
    served = open_served_model(values)
    cache = importlib.import_module("sparse_prefix_jax.cache").PrefixCache(
      served.model, capacity=values.capacity or _CAPACITY
    )
    server.run_server(
      served.model,
      cache,
      served.tokenizer,
      name=served.name,
      listener=listener,
      keys=keys,
      **counts,
    )


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
