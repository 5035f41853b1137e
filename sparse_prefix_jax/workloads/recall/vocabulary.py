"""The words of the recall task, and which token ids they have.

Ids 0 to 255 are bytes, 256 is the mark of a space alone, and every word follows
as one id. A name is a first and a last name: an eighth of all pairs is held
out, so that a test asks about names that training never held together.
"""

import functools

import numpy as np

SPACE = "▁"
"""What stands for a space before a word, as in many tokenizers."""


def _words(text: str) -> tuple[str, ...]:
  """Words with spaces between them."""
  return tuple(text.split())


FIRST_NAMES = _words(
  "Anna Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karla Lukas "
  "Marta Nils Olga Pavel Quentin Rosa Simon Tilda Ulrich Vera Walter Xenia "
  "Yusuf Zoe Amir Beate Carlos Dina Emil Fatima Gustav Hanna Igor Julia Kemal "
  "Lena Mateo Nora Oskar Paula Rafael Selma Tomas Ursula Viktor Wanda Adele "
  "Boris Celia Dario Edith Frida Goran Helga Ivan Jana Kurt Linus Mira Noel "
  "Otto Petra"
)
"""First names of people."""
LAST_NAMES = _words(
  "Berg Novak Silva Keller Moreau Rossi Larsen Petrov Garcia Weber Tanaka "
  "Okafor Lindqvist Haddad Kowalski Mendes Fischer Dubois Ferrari Nilsen "
  "Ivanov Torres Brandt Sato Mensah Ekman Nasser Zielinski Costa Vogel "
  "Laurent Greco Hansen Volkov Ramos Schubert Ito Diallo Holm Farouk Wójcik "
  "Pinto Becker Girard Marino Dahl Popov Vargas Lange Mori Abebe Sandberg "
  "Khalil Nowak Sousa Richter Fontaine Conti Bakke Sokolov Herrera Engel "
  "Kimura Adeyemi"
)
"""Last names of people."""
TOWNS = _words(
  "Oslo Lisbon Vienna Prague Dublin Athens Cairo Lima Quito Havana Bogota "
  "Seoul Kyoto Osaka Hanoi Manila Jakarta Delhi Mumbai Lahore Kabul Tehran "
  "Baghdad Ankara Izmir Sofia Bucharest Belgrade Zagreb Split Trieste Venice "
  "Verona Milan Turin Genoa Naples Palermo Valencia Seville Granada Toledo "
  "Porto Lyon Nantes Bordeaux Marseille Geneva Zurich Basel Munich Leipzig "
  "Dresden Hamburg Bremen Utrecht Ghent Bruges Antwerp Bergen Uppsala Malmo "
  "Turku Tampere Riga Vilnius Krakow Gdansk Poznan Minsk Odessa Tbilisi "
  "Yerevan Baku Tunis Algiers Rabat Dakar Accra Lagos Nairobi Lusaka Harare "
  "Durban Santiago Cordoba Rosario Recife Salvador Boston Denver Dallas "
  "Seattle Toronto Calgary Halifax Perth Darwin Hobart Suva"
)
"""Where people live."""
KEPT = _words(
  "goat horse donkey mule sheep llama camel rabbit hamster ferret hedgehog "
  "tortoise lizard gecko snake frog toad newt crab lobster snail spider "
  "beetle cricket bee parrot canary finch pigeon duck goose swan peacock "
  "turkey hen quail falcon raven crow magpie carp goldfish trout dog cat "
  "poodle beagle terrier pony cow bull buffalo pig boar fox wolf badger "
  "squirrel mouse rat bat monkey panda zebra giraffe violin cello flute "
  "trumpet drum piano guitar banjo harp boat canoe kayak bicycle wagon sledge "
  "tractor lantern compass telescope microscope globe map diary stamp coin "
  "medal mask puppet kite clock mirror carpet teapot trombone saddle"
)
"""What people keep."""
NOUNS = _words(
  "house road bridge river hill garden market field wood stone lamp door "
  "tower mill square boathouse barn church harbour orchard well fence"
)
ADJECTIVES = _words("old long quiet bright cold narrow small green empty plain")
_OTHER = _words(
  ". ? lives in keeps a Where does What live keep In A The the was and of to "
  "on near by under came early stood slept sold again saw crossed It rained"
)


WORDS = (
  *(*_OTHER, *NOUNS, *ADJECTIVES),
  *(*FIRST_NAMES, *LAST_NAMES, *TOWNS, *KEPT),
)
"""Every word, in the order of its id."""

FIRST_WORD = 257
"""The id of the first word; below are the bytes, and the space."""
VOCAB_SIZE = 704
"""Ids of a model: the next multiple of 64, so that some stand for nothing."""

_HELD_OUT_EVERY = 8


@functools.cache
def word_id(word: str) -> int:
  """Returns the id of a word.

  Args:
    word: One of `WORDS`.

  Raises:
    ValueError: If it is none.

  Example:
    >>> word_id(".") == FIRST_WORD
    True
  """
  try:
    return FIRST_WORD + WORDS.index(word)
  except ValueError:
    raise ValueError(f"word is {word!r}; it must be one of WORDS.") from None


def ids_of(sentence: str) -> list[int]:
  """Returns the ids of words with spaces between them.

  Args:
    sentence: Words of `WORDS`.

  Raises:
    ValueError: If a word is none of them.

  Example:
    >>> len(ids_of("Anna Berg lives in Oslo ."))
    6
  """
  return [word_id(word) for word in sentence.split()]


@functools.cache
def name_pairs(*, held_out: bool) -> np.ndarray:
  """Lists pairs of a first and a last name, by their places in the lists.

  Args:
    held_out: Whether to list those of tests, or those of training.

  Returns:
    Places of the first and of the last name, [pairs 2]; the two lists together
    are all pairs.

  Example:
    >>> len(name_pairs(held_out=True)), len(name_pairs(held_out=False))
    (512, 3584)
  """
  first, last = np.indices((len(FIRST_NAMES), len(LAST_NAMES))).reshape(2, -1)
  chosen = ((first + last) % _HELD_OUT_EVERY == 0) == held_out
  return np.stack([first[chosen], last[chosen]], axis=1)
