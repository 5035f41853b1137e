"""The documents of the demo, their questions, and a stream of requests.

Four documents, written for this project, each of 1,700 to 2,000 words with
eleven or twelve questions; some questions have an answer and a second question
that only makes sense after it, as in a conversation. A prompt is a document
followed by a question, so that two requests about one document share all of its
tokens, and a second turn shares all of its first (overlap in
real traffic is a mixture of a few shared anchors and of the end of the previous
entry).

The tokenizer is a byte-level BPE trained on these documents alone; the script
`benchmarks/train_demo_bpe.py` makes the file again.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

import numpy as np

from sparse_prefix_jax import extras

# A folder without code: importable, hence found in a wheel as in a checkout.
_DOCUMENTS = "sparse_prefix_jax.workloads.demo_documents"
TOKENIZER_FILE = "tokenizer.json"
_QUESTIONS = ".questions.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question about a document, and perhaps how the conversation goes on.

  Attributes:
    text: the question.
    answer: what was answered; empty if the conversation ends with the question.
    follow_up: the second question, asked after `answer`, or empty.
  """

  text: str
  answer: str = ""
  follow_up: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A document that several requests ask about.

  Attributes:
    title: its first line.
    text: everything after the title; paragraphs are separated by empty lines.
    questions: what is asked about it, at least eight.
  """

  title: str
  text: str
  questions: tuple[Question, ...]


class DemoRequest(NamedTuple):
  """One request of the stream.

  Attributes:
    group: the index of its document in `load_demo_corpus()`.
    token_ids: [t] int32, the prompt.
  """

  group: int
  token_ids: np.ndarray


@functools.cache
def load_demo_corpus() -> tuple[Document, ...]:
  """Reads the documents that ship with the package, in order of their names.

  >>> corpus = load_demo_corpus()
  >>> len(corpus), min(len(document.questions) for document in corpus)
  (4, 11)

  Returns:
    The documents, the same objects at every call.
  """
  files = sorted(_folder().iterdir(), key=lambda file: file.name)
  return tuple(_document(file) for file in files if file.name.endswith(".txt"))


@functools.cache
def load_demo_tokenizer() -> Any:
  """Reads the byte-level BPE of the demo; every text comes back as it was.

  >>> tokenizer = load_demo_tokenizer()
  >>> tokenizer.decode(tokenizer.encode("The tide turns.").ids)
  'The tide turns.'

  Returns:
    The `tokenizers.Tokenizer`; its vocabulary size is `get_vocab_size()`, at
    most 4,096.

  Raises:
    MissingExtraError: the package `tokenizers` is not installed.
  """
  tokenizers = extras.optional("tokenizers", "demo")
  file = _folder() / TOKENIZER_FILE
  return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))


def demo_requests(interleave_seed: int) -> tuple[DemoRequest, ...]:
  """Every question of every document as a request, in a mixed order.

  The documents take turns at random, as their readers would. A second question
  comes at a random place after its first, and its prompt continues the first
  prompt with the answer, so that all of the first prompt is shared.

  >>> requests = demo_requests(interleave_seed=42)
  >>> len(requests), requests[0].token_ids.dtype.name
  (57, 'int32')

  Args:
    interleave_seed: chooses the order; the set of requests is always the same.

  Returns:
    The requests, in the order in which they arrive.

  Raises:
    ValueError: if `interleave_seed` is negative.
  """
  if interleave_seed < 0:
    raise ValueError(
      f"interleave_seed is {interleave_seed}; it must not be negative"
    )
  generator = np.random.default_rng(interleave_seed)
  streams = [_in_order(document, generator) for document in load_demo_corpus()]
  order = np.repeat(np.arange(len(streams)), [len(s) for s in streams])
  generator.shuffle(order)
  waiting = [iter(stream) for stream in streams]
  return tuple(DemoRequest(int(g), next(waiting[g])) for g in order)


def document_text(document: Document) -> str:
  """The text with which every prompt about a document begins.

  Args:
    document: one of `load_demo_corpus()`.

  Returns:
    Title and text, with the empty line that separates them from the question.
  """
  return f"{document.title}\n\n{document.text}\n\n"


def training_texts() -> Iterator[str]:
  """Everything that the prompts are made of, for training the tokenizer.

  Yields:
    One string for each document and for each turn of each question.
  """
  for document in load_demo_corpus():
    yield document_text(document)
    for question in document.questions:
      yield from _turns(question)


def _folder() -> Traversable:
  return importlib.resources.files(_DOCUMENTS)


def _document(file: Traversable) -> Document:
  """Reads a text and the questions in the file beside it."""
  title, _, text = file.read_text(encoding="utf-8").partition("\n")
  beside = _folder() / file.name.replace(".txt", _QUESTIONS)
  return Document(
    title=title.strip(),
    text=text.strip(),
    questions=tuple(
      Question(
        text=entry["question"],
        answer=entry.get("answer", ""),
        follow_up=entry.get("follow_up", ""),
      )
      for entry in json.loads(beside.read_text(encoding="utf-8"))
    ),
  )


def _turns(question: Question) -> list[str]:
  """What the first turn, and the second if there is one, add to a prompt."""
  turns = [f"Question: {question.text}\nAnswer:"]
  if question.follow_up:
    turns.append(
      f" {question.answer}\n\nQuestion: {question.follow_up}\nAnswer:"
    )
  return turns


def _in_order(
  document: Document, generator: np.random.Generator
) -> list[np.ndarray]:
  """The prompts about one document, second turns after their first ones."""
  prompts: dict[int, list[int]] = {}
  start = _encode(document_text(document))
  stream = []
  for number, turn in _shuffled(document, generator):
    prompts[number] = prompts.get(number, start) + _encode(turn)
    stream.append(np.asarray(prompts[number], np.int32))
  return stream


def _shuffled(
  document: Document, generator: np.random.Generator
) -> list[tuple[int, str]]:
  """Question numbers and turns: any order that keeps turns of one in order."""
  waiting = {i: iter(_turns(q)) for i, q in enumerate(document.questions)}
  numbers = [i for i, q in enumerate(document.questions) for _ in _turns(q)]
  order = generator.permutation(numbers).tolist()
  return [(number, next(waiting[number])) for number in order]


def _encode(text: str) -> list[int]:
  """Token ids of a text; each part of a prompt is encoded on its own, so that
  what two prompts share as text they share as tokens.
  """
  return load_demo_tokenizer().encode(text).ids
