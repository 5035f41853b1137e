"""What a client is told, in the form of OpenAI's interface."""

import dataclasses
import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_prefix_jax.serving.answers import Delta
from sparse_prefix_jax.serving.server.calls import Call
from sparse_prefix_jax.serving.server.pieces import Piece
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer


def error_reply(sentence: str, kind: str = "invalid_request_error") -> Any:
  """The body of an error.

  Args:
    sentence: What is wrong.
    kind: Its type.

  Example:
    >>> error_reply("n is 0.")["error"]["message"]
    'n is 0.'
  """
  return {
    "error": {"message": sentence, "type": kind, "param": None, "code": None}
  }


@dataclasses.dataclass(eq=False)
class Reply:
  """Collects the pieces of a call, and says them as chunks or as a whole.

  Attributes:
    call: What was asked.
    model: The name of the model.
    tokenizer: Says ids as texts.
    number: The id of the reply.
    created: When it began, in seconds.
  """

  call: Call
  model: str
  tokenizer: TextTokenizer
  number: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  def __post_init__(self) -> None:
    """Nothing has come yet."""
    size = len(self.call.prompts) * self.call.samples
    self._deltas: list[list[Delta]] = [[] for _ in range(size)]
    self._pieces: list[Piece | None] = [None] * size

  def add(self, piece: Piece) -> None:
    """Notes a piece.

    Args:
      piece: Of one answer.
    """
    self._pieces[piece.index] = piece
    if piece.delta is not None:
      self._deltas[piece.index].append(piece.delta)

  def chunk(self, piece: Piece) -> dict[str, Any]:
    """A piece as one chunk of a stream.

    Args:
      piece: The last that was added.
    """
    delta = piece.delta
    assert delta is not None
    choice: dict[str, Any] = {
      "index": piece.index,
      "logprobs": self._logprobs([delta], self._before(piece.index)),
      "finish_reason": delta.finish_reason,
    }
    # Where numbers come in the end, all chunks before have the field, too.
    usage = {"usage": None} if self.call.usage else {}
    if not self.call.chat:
      choice["text"] = delta.text
      return self._object("text_completion", [choice]) | usage
    said: dict[str, Any] = {"content": delta.text} if delta.text else {}
    if len(self._deltas[piece.index]) == 1:
      said = {"role": "assistant", "content": delta.text}
    choice["delta"] = said
    return self._object("chat.completion.chunk", [choice]) | usage

  def last_chunk(self) -> dict[str, Any]:
    """The chunk that tells the numbers of tokens."""
    kind = "chat.completion.chunk" if self.call.chat else "text_completion"
    return self._object(kind, []) | {"usage": self.usage()}

  def whole(self) -> dict[str, Any]:
    """All answers at once."""
    kind = "chat.completion" if self.call.chat else "text_completion"
    choices = [self._choice(i, d) for i, d in enumerate(self._deltas)]
    return self._object(kind, choices) | {"usage": self.usage()}

  def usage(self) -> dict[str, Any]:
    """Numbers of tokens; a prompt counts once, restored as its first sample."""
    firsts = self._pieces[:: self.call.samples]
    prompt = sum(piece.prompt_tokens for piece in firsts if piece)
    cached = sum(piece.restored or 0 for piece in firsts if piece)
    decoded = sum(len(d.ids) for deltas in self._deltas for d in deltas)
    return {
      "prompt_tokens": prompt,
      "completion_tokens": decoded,
      "total_tokens": prompt + decoded,
      "prompt_tokens_details": {"cached_tokens": cached},
    }

  def _object(self, kind: str, choices: Sequence[Any]) -> dict[str, Any]:
    """What every reply begins with."""
    prefix = "chatcmpl" if self.call.chat else "cmpl"
    return {
      "id": f"{prefix}-{self.number}",
      "object": kind,
      "created": self.created,
      "model": self.model,
      # Not of OpenAI's form, whose clients keep it: the same seed draws again.
      "seed": self.call.sampling.seed,
      "choices": list(choices),
    }

  def _choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
    """One answer as a whole."""
    text = "".join(delta.text for delta in deltas)
    choice: dict[str, Any] = {
      "index": index,
      "logprobs": self._logprobs(deltas, 0),
      "finish_reason": deltas[-1].finish_reason,
    }
    if not self.call.chat:
      return choice | {"text": text}
    return choice | {"message": {"role": "assistant", "content": text}}

  def _before(self, index: int) -> int:
    """Characters of an answer before the ids of its last delta."""
    before = self._deltas[index][:-1]
    return sum(len(text) for delta in before for text in delta.texts)

  def _logprobs(
    self, deltas: Sequence[Delta], offset: int
  ) -> Mapping[str, Any] | None:
    """Log probabilities, where they were asked for."""
    if self.call.best is None:
      return None
    ids = [i for delta in deltas for i in delta.ids]
    texts = [text for delta in deltas for text in delta.texts]
    logprobs = [x for delta in deltas for x in delta.logprobs]
    best = [[*zip(*one)] for delta in deltas for one in delta.best]
    best = best or [[] for _ in ids]
    if self.call.chat:
      content = [
        self._told(token, logprob, text)
        | {"top_logprobs": [self._told(*other) for other in others]}
        for token, logprob, text, others in zip(
          ids, logprobs, texts, best, strict=True
        )
      ]
      return {"content": content, "refusal": None}
    ends = [
      offset,
      *(offset + end for end in itertools.accumulate(map(len, texts))),
    ]
    return {
      "tokens": texts,
      "token_logprobs": logprobs,
      "top_logprobs": [self._by_name(others) for others in best],
      "text_offset": ends[:-1],
    }

  def _told(self, token: int, logprob: float, text: str) -> dict[str, Any]:
    """An id of a chat with its log probability."""
    content = self.tokenizer.bytes_of(token)
    return {
      "token": text,
      "logprob": max(logprob, -9999.0),
      "bytes": list(text.encode() if content is None else content),
    }

  def _by_name(
    self, others: Sequence[tuple[int, float, str]]
  ) -> dict[str, float]:
    """The most probable ids of a completion; of two with one name the first."""
    named: dict[str, float] = {}
    for token, logprob, text in others:
      named.setdefault(text or self._name(token), logprob)
    return named

  def _name(self, token: int) -> str:
    """What an id without a text of its own is called."""
    content = self.tokenizer.bytes_of(token)
    if content is None:
      return self.tokenizer.name_of(token)
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
