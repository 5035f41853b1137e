"""Documents of the recall task: facts among fillers, then questions.

    ... Anna Berg lives in Oslo . The old road to Lima was long . ...
    Where does Anna Berg live ? In Oslo . What does ...

Every fact stands once, anywhere before the first question, so that a model that
sees few tokens behind it must have kept it. Fillers hold names and values too.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.workloads.recall.vocabulary import (
  ADJECTIVES,
  FIRST_NAMES,
  KEPT,
  LAST_NAMES,
  NOUNS,
  TOWNS,
  ids_of,
  name_pairs,
  word_id,
)

FACT_LENGTH = 6
"""Tokens of a fact."""
QUESTION_LENGTH = 9
"""Tokens of a question with its answer."""
ANSWER_OFFSET = 7
"""Where in them the answer stands, one token."""

_FACTS = ("{} {} lives in {} .", "{} {} keeps a {} .")
_QUESTIONS = (
  "Where does {} {} live ? In {} .",
  "What does {} {} keep ? A {} .",
)
# By length. Half of them hold a value or a name, of nobody's fact.
_FILLERS = (
  "The NOUN was ADJECTIVE .",
  "It rained near TOWN .",
  "The ADJECTIVE NOUN was ADJECTIVE .",
  "FIRST came to TOWN early .",
  "A KEPT slept near the NOUN .",
  "The NOUN stood by the NOUN .",
  "LAST sold the ADJECTIVE NOUN again .",
  "The KEPT crossed the ADJECTIVE NOUN again .",
  "FIRST saw a KEPT under the NOUN .",
  "The NOUN of LAST stood near TOWN .",
  "The road to TOWN was ADJECTIVE and ADJECTIVE .",
  "The NOUN on the NOUN was ADJECTIVE .",
)
_SLOTS = {
  "NOUN": NOUNS,
  "ADJECTIVE": ADJECTIVES,
  "TOWN": TOWNS,
  "KEPT": KEPT,
  "FIRST": FIRST_NAMES,
  "LAST": LAST_NAMES,
}
_BOTH_FACTS = 0.25  # of the people, at most: they live and keep something


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallShape:
  """How long a document is, and how much it holds.

  Attributes:
    tokens: Tokens of the document, questions and answers included.
    facts: Facts that it states.
    questions: Questions at its end.
    distinct: Whether no fact is asked for twice. Otherwise every question is
      drawn on its own, so that those before it do not tell which one is left: a
      model that could count would learn that first.

  Raises:
    ValueError: If a number is below 1, there are too few names or facts, or the
      tokens do not hold it all.

  Example:
    >>> RecallShape(tokens=128, facts=5, questions=10).filler_tokens
    8
  """

  tokens: int
  facts: int
  questions: int
  distinct: bool = False

  def __post_init__(self) -> None:
    """Refuses what cannot be written."""
    most = len(name_pairs(held_out=True))
    for name in ("tokens", "facts", "questions"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1.")
    if self.facts > most:
      raise ValueError(f"facts is {self.facts}; it must be at most {most}.")
    if self.distinct and self.questions > self.facts:
      raise ValueError(
        f"questions is {self.questions}; distinct ones are at most facts = "
        f"{self.facts}."
      )
    if self.filler_tokens != 0 and self.filler_tokens < _shortest():
      raise ValueError(
        f"tokens is {self.tokens}; {self.facts} facts and {self.questions} "
        f"questions take {self.tokens - self.filler_tokens}, and fillers none "
        f"or at least {_shortest()} more."
      )

  @property
  def filler_tokens(self) -> int:
    """Tokens that are left for fillers."""
    held = FACT_LENGTH * self.facts + QUESTION_LENGTH * self.questions
    return self.tokens - held


class RecallDocument(NamedTuple):
  """A document and where its answers stand.

  Attributes:
    token_ids: The document. int32 [t]
    answers: Positions of the answers, ascending. int32 [q]
  """

  token_ids: np.ndarray
  answers: np.ndarray

  @property
  def body(self) -> np.ndarray:
    """The tokens before the first question."""
    return self.token_ids[: self.answers[0] - ANSWER_OFFSET]

  def question(self, index: int) -> np.ndarray:
    """A question up to its answer, which would be the next token."""
    end = self.answers[index]
    return self.token_ids[end - ANSWER_OFFSET : end]

  def answer(self, index: int) -> int:
    """The id of an answer."""
    return int(self.token_ids[self.answers[index]])


def recall_document(
  shape: RecallShape, generator: np.random.Generator, *, held_out: bool
) -> RecallDocument:
  """Writes a document.

  Args:
    shape: How long it is, and how much it holds.
    generator: What draws everything.
    held_out: Whether its names are those of tests.

  Returns:
    The document.

  Example:
    >>> shape = RecallShape(tokens=128, facts=5, questions=10)
    >>> generator = np.random.default_rng(0)
    >>> document = recall_document(shape, generator, held_out=False)
    >>> document.token_ids.shape, document.answers[:2].tolist()
    ((128,), [45, 54])
  """
  facts = _draw_facts(shape.facts, generator, held_out)
  asked = generator.choice(
    shape.facts, shape.questions, replace=not shape.distinct
  )
  sentences = [_write(_FACTS, fact) for fact in facts]
  sentences += _draw_fillers(shape.filler_tokens, generator)
  ids = [
    token
    for index in generator.permutation(len(sentences))
    for token in sentences[index]
  ]
  start = len(ids)
  for index in asked:
    ids += _write(_QUESTIONS, facts[index])
  answers = start + ANSWER_OFFSET + QUESTION_LENGTH * np.arange(shape.questions)
  return RecallDocument(np.array(ids, np.int32), answers.astype(np.int32))


def recall_batch(
  shape: RecallShape,
  batch: int,
  generator: np.random.Generator,
  *,
  held_out: bool,
) -> RecallDocument:
  """Writes several documents of one shape.

  Args:
    shape: How long each is, and how much it holds.
    batch: How many.
    generator: What draws everything.
    held_out: Whether their names are those of tests.

  Returns:
    Token ids [b t] and answers [b q].
  """
  documents = [
    recall_document(shape, generator, held_out=held_out) for _ in range(batch)
  ]
  return RecallDocument(*map(np.stack, zip(*documents, strict=True)))


class _Fact(NamedTuple):
  """Token ids of a name, which relation it is in, and to what."""

  first: int
  last: int
  relation: int
  value: int


def _draw_facts(
  count: int, generator: np.random.Generator, held_out: bool
) -> list[_Fact]:
  """Facts that do not contradict each other."""
  pairs = name_pairs(held_out=held_out)
  chosen = generator.choice(len(pairs), count, replace=False)
  relations = generator.integers(0, 2, count)
  doubled = generator.random(count) < _BOTH_FACTS
  for i in range(1, count):
    doubled[i] &= not doubled[i - 1]
    if doubled[i]:
      chosen[i], relations[i] = chosen[i - 1], 1 - relations[i - 1]
  names, values = _slots(), (_slots()["TOWN"], _slots()["KEPT"])
  draws = generator.random(count)
  return [
    _Fact(
      names["FIRST"][first],
      names["LAST"][last],
      relation,
      values[relation][int(draw * len(values[relation]))],
    )
    for (first, last), relation, draw in zip(pairs[chosen], relations, draws)
  ]


def _draw_fillers(
  tokens: int, generator: np.random.Generator
) -> list[list[int]]:
  """Sentences of `tokens` tokens in all."""
  fillers, slots, sentences = _fillers(), _slots(), []
  while tokens > 0:
    fitting = [
      filler
      for filler in fillers
      if len(filler) == tokens or len(filler) + _shortest() <= tokens
    ]
    filler = fitting[int(generator.random() * len(fitting))]
    draws = generator.random(len(filler))
    sentences.append(
      [
        word
        if isinstance(word, int)
        else slots[word][int(draw * len(slots[word]))]
        for word, draw in zip(filler, draws)
      ]
    )
    tokens -= len(filler)
  return sentences


def _write(forms: tuple[str, str], fact: _Fact) -> list[int]:
  """A fact or a question, with a name and a value in their places."""
  blanks = iter((fact.first, fact.last, fact.value))
  return [
    next(blanks) if word is None else word
    for word in _form(forms[fact.relation])
  ]


@functools.cache
def _form(sentence: str) -> tuple[int | None, ...]:
  """Token ids of a sentence, None in its blanks."""
  words = sentence.split()
  return tuple(None if word == "{}" else word_id(word) for word in words)


@functools.cache
def _fillers() -> tuple[tuple[int | str, ...], ...]:
  """Token ids of the fillers, and names of what is drawn."""
  return tuple(
    tuple(word if word in _SLOTS else word_id(word) for word in filler.split())
    for filler in _FILLERS
  )


@functools.cache
def _slots() -> dict[str, list[int]]:
  """Token ids of what is drawn."""
  return {name: ids_of(" ".join(words)) for name, words in _SLOTS.items()}


@functools.cache
def _shortest() -> int:
  """Tokens of the shortest filler; one fits wherever so many are left."""
  return min(map(len, _fillers()))
