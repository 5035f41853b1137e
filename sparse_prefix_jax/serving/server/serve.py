"""Runs the interface until a signal ends it."""

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Collection
from typing import TextIO

from sparse_prefix_jax import extras
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.serving.scheduler import Scheduler
from sparse_prefix_jax.serving.server.app import make_app
from sparse_prefix_jax.serving.server.service import Service
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer


def listen(host: str, port: int) -> socket.socket:
  """Listens at an address, before anything is loaded for it.

  Args:
    host: A name or an address; 127.0.0.1 is reached by this machine alone.
    port: 0 for any free one.

  Raises:
    ValueError: If the port is none, or the host no name.
    OSError: If the address is taken, or is none of this machine.
  """
  if not 0 <= port < 2**16:
    raise ValueError(f"port is {port}; it must be 0 to {2**16 - 1}.")
  try:  # The socket would be left open where it is asked first.
    host.encode("idna")
  except UnicodeError:
    raise ValueError(
      f"host is {brief(host)}; it must be a name or an address."
    ) from None
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    reason = (error.strerror or str(error)).partition(" (while")[0]
    raise OSError(f"cannot listen at {host}:{port}: {reason}") from None


def run_server(
  model: HybridDecoder,
  cache: PrefixCache,
  tokenizer: TextTokenizer,
  *,
  name: str,
  listener: socket.socket,
  keys: Collection[str] = (),
  max_running: int = 64,
  max_waiting: int = 256,
  token_budget: int = 512,
  warm_up: bool = True,
  grace: int = 60,
) -> None:
  """Serves until SIGTERM or SIGINT; what runs then is finished first.

  Args:
    model: The model of the cache.
    cache: Where requests run.
    tokenizer: Of the model.
    name: What clients call the model.
    listener: Of `listen`; it is closed in the end.
    keys: API keys; whoever reaches the address may ask, if there are none.
    max_running: Most requests that run at once.
    max_waiting: Most requests that wait besides; more are told to come again.
    token_budget: Most tokens of prompts per step.
    warm_up: Whether programs are compiled before the address is told; until
      then `/health` has status 503, and calls wait.
    grace: Seconds that running requests have to finish after a signal; then
      they end, and what they decoded is stored.

  Raises:
    ValueError: If an argument is out of range.
    MissingExtraError: If `starlette` or `uvicorn` is not installed.
  """
  uvicorn = extras.optional("uvicorn", "server")
  scheduler = Scheduler(
    model,
    cache,
    max_running=max_running,
    max_waiting=max_waiting,
    token_budget=token_budget,
  )
  host, port = listener.getsockname()[:2]
  address = f"[{host}]" if ":" in host else host

  def ready() -> None:
    _say(f"http://{address}:{port} serves {name}", sys.stdout)

  service = Service(
    model,
    cache,
    tokenizer,
    scheduler,
    compiling=_tell if warm_up else None,
    ready=ready,
  )
  del model  # Its weights may be replaced, and go.
  config = uvicorn.Config(
    make_app(service, name, keys=keys),
    log_level=logging.WARNING,
    timeout_graceful_shutdown=grace,
    lifespan="on",
  )
  # The server raises a signal again once it has ended; ending is all it means.
  before = {
    number: signal.signal(number, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    uvicorn.Server(config).run(sockets=[listener])
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _tell(stage: str) -> None:
  """Says on the terminal what is compiled."""
  _say(f"compiling {stage}", sys.stderr)


def _say(line: str, stream: TextIO) -> None:
  """Prints a line; whoever does not read it is served all the same."""
  with contextlib.suppress(OSError):
    print(line, file=stream, flush=True)
