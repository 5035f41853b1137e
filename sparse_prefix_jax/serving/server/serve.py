"""Runs the interface until a signal ends it."""

import logging
import signal
from collections.abc import Collection

from sparse_prefix_jax import extras
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.serving.scheduler import Scheduler
from sparse_prefix_jax.serving.server.app import make_app
from sparse_prefix_jax.serving.server.service import Service
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer


def run_server(
  model: HybridDecoder,
  cache: PrefixCache,
  tokenizer: TextTokenizer,
  *,
  name: str,
  host: str = "127.0.0.1",
  port: int = 8000,
  keys: Collection[str] = (),
  max_running: int = 64,
  max_waiting: int = 256,
  grace: int = 60,
) -> None:
  """Serves until SIGTERM or SIGINT; what runs then is finished first.

  Args:
    model: The model of the cache.
    cache: Where requests run.
    tokenizer: Of the model.
    name: What clients call the model.
    host: The address to listen at; by default nobody else's machine reaches it.
    port: The port; 0 for any free one.
    keys: API keys; whoever reaches the address may ask, if there are none.
    max_running: Most requests that run at once.
    max_waiting: Most requests that wait; more are told to come again.
    grace: Seconds that running requests have to finish after a signal; then
      they end, and what they decoded is stored.

  Raises:
    ValueError: If an argument is out of range.
    OSError: If the address cannot be listened at.
    MissingExtraError: If `starlette` or `uvicorn` is not installed.
  """
  uvicorn = extras.optional("uvicorn", "server")
  scheduler = Scheduler(model, cache, max_running=max_running)
  service = Service(model, cache, tokenizer, scheduler, max_waiting=max_waiting)
  config = uvicorn.Config(
    make_app(service, name, keys=keys),
    host=host,
    port=port,
    log_level=logging.WARNING,
    timeout_graceful_shutdown=grace,
    lifespan="on",
  )
  sockets = [config.bind_socket()]
  host, port = sockets[0].getsockname()[:2]
  print(f"http://{host}:{port} serves {name}", flush=True)
  # The server raises a signal again once it has ended; ending is all it means.
  before = {
    number: signal.signal(number, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    uvicorn.Server(config).run(sockets=sockets)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
