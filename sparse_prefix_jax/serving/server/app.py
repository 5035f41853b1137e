"""The routes: who may ask, what is asked, how it is sent."""

import asyncio
import contextlib
import functools
import hashlib
import hmac
import json
import pathlib
from collections.abc import (
  AsyncGenerator,
  AsyncIterator,
  Awaitable,
  Collection,
  Iterator,
  Mapping,
)
from types import MappingProxyType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
  HTMLResponse,
  JSONResponse,
  PlainTextResponse,
  Response,
  StreamingResponse,
)
from starlette.routing import Route

from sparse_prefix_jax.cache.exposition import prometheus_text
from sparse_prefix_jax.serving.server.calls import read_call
from sparse_prefix_jax.serving.server.pieces import Piece
from sparse_prefix_jax.serving.server.replies import Reply, error_reply
from sparse_prefix_jax.serving.server.service import (
  REFUSALS,
  Service,
)

_T = TypeVar("_T")
_MOST_BYTES = 16 * 2**20
_MOST_READ = 2**30
_RETRY_SECONDS = 1
_MOST_NAME = 200
# The page asks its own server and nobody else: browsers refuse the rest.
PAGE_POLICY = "; ".join(
  (
    "default-src 'none'",
    "connect-src 'self'",
    "img-src data:",
    "script-src 'unsafe-inline'",
    "style-src 'unsafe-inline'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  )
)


class Refused(Exception):
  """A request is answered with an error.

  Attributes:
    status: Of the answer.
    sentence: What is wrong.
    headers: Of the answer, besides those of its status.
  """

  def __init__(
    self,
    status: int,
    sentence: str,
    headers: Mapping[str, str] = MappingProxyType({}),
  ) -> None:
    """Says what is wrong, and how."""
    super().__init__(sentence)
    self.status, self.sentence, self.headers = status, sentence, headers

  def response(self) -> Response:
    """The answer."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(self.status, "invalid_request_error")
    if self.status >= 500:
      kind = "server_error"
    headers = dict(self.headers)
    if self.status in (429, 503):
      headers["Retry-After"] = str(_RETRY_SECONDS)
    if self.status == 401:
      headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
      error_reply(self.sentence, kind), self.status, headers=headers
    )


def make_app(
  service: Service, model: str, *, keys: Collection[str] = ()
) -> Starlette:
  """Makes the application.

  Args:
    service: Answers; it starts and stops with the application.
    model: The name of the model.
    keys: Who may ask; whoever may, if there are none. Callers with different
      keys share no states.
  """
  routes = _Routes(service, model, tuple(keys))

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    del app
    service.start()
    try:
      yield
    finally:
      await asyncio.to_thread(service.stop)

  return Starlette(
    routes=[
      Route("/", routes.page),
      Route("/health", routes.health),
      Route("/metrics", routes.metrics),
      Route("/v1/models", routes.models),
      Route("/v1/models/{name:path}", routes.named_model),
      Route("/v1/states", routes.states, methods=["POST"]),
      Route(
        "/v1/completions",
        functools.partial(routes.answer, False),
        methods=["POST"],
      ),
      Route(
        "/v1/chat/completions",
        functools.partial(routes.answer, True),
        methods=["POST"],
      ),
    ],
    exception_handlers={Refused: _refused, 404: _unknown, 405: _unknown},
    lifespan=lifespan,
  )


async def _refused(request: Request, error: Exception) -> Response:
  del request
  assert isinstance(error, Refused)
  return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
  status = getattr(error, "status_code", 404)
  sentence = f"{request.method} {_short(request.url.path)} is not known here."
  # Which methods a path knows.
  headers = getattr(error, "headers", None) or {}
  return Refused(status, sentence, headers).response()


def _short(text: str) -> str:
  """What a client named, of which nobody reads thousands of letters."""
  return text if len(text) <= _MOST_NAME else f"{text[:_MOST_NAME]}..."


class _Routes:
  """What every path answers."""

  def __init__(
    self, service: Service, model: str, keys: tuple[str, ...]
  ) -> None:
    self._service, self._model = service, model
    self._keys = [_digest(key) for key in keys]

  async def page(self, request: Request) -> Response:
    """The page that people see."""
    del request
    headers = {"Content-Security-Policy": PAGE_POLICY}
    return HTMLResponse(_page(), headers=headers)

  async def health(self, request: Request) -> Response:
    """Whether it serves."""
    del request
    refusal = await self._service.refusal()
    if refusal is not None:
      raise Refused(503, refusal)
    return JSONResponse({"status": "ok"})

  async def metrics(self, request: Request) -> Response:
    """Figures for Prometheus."""
    self._salt(request)
    # What would have been possible takes up to seconds, so it is asked for.
    bound = "bound" in request.query_params
    text = await asyncio.to_thread(_metrics, self._service, bound)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

  async def models(self, request: Request) -> Response:
    """The only model."""
    self._salt(request)
    return JSONResponse({"object": "list", "data": [self._described()]})

  async def named_model(self, request: Request) -> Response:
    """The model of a name."""
    self._salt(request)
    name = request.path_params["name"]
    if name != self._model:
      sentence = f"{_short(name)} is no model here; {self._model} is."
      raise Refused(404, sentence)
    return JSONResponse(self._described())

  def _described(self) -> dict[str, Any]:
    """What is said of the model."""
    return {
      "id": self._model,
      "object": "model",
      "created": 0,
      "owned_by": "sparse_prefix_jax",
    }

  async def states(self, request: Request) -> Response:
    """What is stored of a prompt or a conversation."""
    salt = self._salt(request)
    content = await _content(request)
    with _refusing():
      call = read_call(content, self._model, chat=None)
      found = [await self._service.states(p, salt) for p in call.prompts]
    return JSONResponse({"object": "list", "data": found})

  async def answer(self, chat: bool, request: Request) -> Response:
    """Answers a completion or a chat, as a whole or as it comes."""
    salt = self._salt(request)
    content = await _content(request)
    with _refusing():
      call = read_call(content, self._model, chat=chat)
    reply = Reply(call, self._model, self._service.tokenizer)
    pieces = self._service.answer(call, salt)
    if call.stream:
      # What is refused is so before the first byte.
      with _refusing():
        first = await _unless_gone(request, anext(pieces))
      return StreamingResponse(
        _events(reply, first, pieces), media_type="text/event-stream"
      )
    try:
      with _refusing():
        await _unless_gone(request, _collect(reply, pieces))
    finally:
      await pieces.aclose()
    return JSONResponse(reply.whole())

  def _salt(self, request: Request) -> bytes:
    """Refuses who has no key; what keeps callers apart for who has."""
    if not self._keys:
      return b""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    digest = _digest(key.strip())
    # Every key is compared to its end, whichever it is.
    known = [hmac.compare_digest(digest, one) for one in self._keys]
    if scheme.lower() != "bearer" or not any(known):
      raise Refused(401, "the API key is missing or not known.")
    return digest


def _digest(key: str) -> bytes:
  """A key as bytes of one length."""
  return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


async def _content(request: Request) -> bytes:
  """The body, if it is not too long.

  A client that still sends does not read; so the rest is read, and let go.
  """
  content, size = bytearray(), 0
  try:
    async for part in request.stream():
      size += len(part)
      if size <= _MOST_BYTES:
        content += part
      if size > _MOST_READ:
        break
  except ClientDisconnect:
    raise _gone() from None
  if size > _MOST_BYTES:
    raise Refused(400, f"the body has more than {_MOST_BYTES} bytes.")
  return bytes(content)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
  """Turns what is wrong with a request into an answer that says so."""
  try:
    yield
  except tuple(REFUSALS) as error:
    status = next(
      REFUSALS[kind] for kind in REFUSALS if isinstance(error, kind)
    )
    raise Refused(status, " ".join(str(error).split())) from None


async def _collect(reply: Reply, pieces: AsyncGenerator[Piece, None]) -> None:
  """Takes all pieces."""
  async for piece in pieces:
    if piece.error is not None:
      raise Refused(500, piece.error)
    reply.add(piece)


def _gone() -> Refused:
  """Nobody reads this; the log of a proxy may."""
  return Refused(499, "the client has gone.")


async def _disconnected(request: Request) -> None:
  """Returns when the client has gone."""
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
  """Does some work, and lets go of it if the client goes first."""
  gone = asyncio.ensure_future(_disconnected(request))
  task = asyncio.ensure_future(work)
  try:
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise _gone()
    return task.result()
  finally:
    gone.cancel()
    if task.cancel():
      with contextlib.suppress(asyncio.CancelledError):
        await task


async def _events(
  reply: Reply, first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncIterator[bytes]:
  """Server-sent events: chunks, the numbers of tokens, the end."""
  async with contextlib.aclosing(_with_first(first, pieces)) as all_pieces:
    async for piece in all_pieces:
      if piece.error is not None:
        yield _event(error_reply(piece.error, "server_error"))
        break
      reply.add(piece)
      yield _event(reply.chunk(piece))
  if reply.call.usage:
    yield _event(reply.last_chunk())
  yield b"data: [DONE]\n\n"


async def _with_first(
  first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
  """Pieces, the first of which was taken already."""
  async with contextlib.aclosing(pieces):
    yield first
    async for piece in pieces:
      yield piece


def _event(body: Any) -> bytes:
  return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _metrics(service: Service, bound: bool) -> str:
  """What the cache counts, then what the server counts."""
  lines = [prometheus_text(service.cache.stats(), bound=bound)]
  for name, value in service.counts().items():
    kind = "gauge" if name in ("waiting", "running") else "counter"
    suffix = "_total" if kind == "counter" else ""
    full = f"sparse_prefix_server_{name}{suffix}"
    lines.append(f"# TYPE {full} {kind}\n{full} {value}\n")
  return "".join(lines)


@functools.cache
def _page() -> str:
  return pathlib.Path(__file__).with_name("page.html").read_text("utf-8")
