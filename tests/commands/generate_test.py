"""generate: a prompt, a conversation, a folder, and refusals."""

import importlib.resources
import io
import json
import pathlib
import re
import shutil
import sys

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sparse_prefix_jax.serving.engine import Engine
from sparse_prefix_jax.training import job
from tests.commands.refusal import refused

GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "golden" / "random"
FACTS = "Anna Berg lives in Oslo . Bruno Silva keeps a goat ."
SMALL = "--capacity=8MiB"


def counts(line):
  """Tokens restored, computed and decoded, as a line of stderr tells them."""
  found = re.fullmatch(
    r"\[(\d+) tokens restored, (\d+) computed, (\d+) decoded\]", line
  )
  assert found, line
  return tuple(map(int, found.groups()))


@pytest.fixture
def talk(command, monkeypatch):
  """Runs a conversation of some lines."""

  def run(lines, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    return command("generate", SMALL, *arguments)

  return run


def test_a_prompt_goes_on(command):
  prompt = f"{FACTS} Where does Anna Berg live ? In"
  status, out, err = command("generate", f"--prompt={prompt}", SMALL)
  assert (status, out) == (0, "Oslo\n")
  assert counts(err.strip()) == (0, len(prompt.split()), 1)


def test_the_folder_of_a_training_answers(command, tmp_path):
  """It has weights and no config.json; here they are those that ship."""
  shipped = importlib.resources.files(
    "sparse_prefix_jax.training.trained_weights"
  )
  content = (shipped / "recall.safetensors").read_bytes()
  (tmp_path / job.WEIGHTS_FILE).write_bytes(content)
  (tmp_path / "curve.json").write_text("{}")
  prompt = f"{FACTS} Where does Anna Berg live ? In"
  flags = f"--model={tmp_path}", f"--prompt={prompt}"
  status, out, _ = command("generate", *flags, "--max_tokens=1", SMALL)
  assert (status, out) == (0, "Oslo\n")
  (tmp_path / job.WEIGHTS_FILE).write_bytes(content[:-1])
  assert "is damaged" in refused(command("generate", *flags, SMALL))


def test_a_conversation_resumes_turn_by_turn(talk):
  filler = "The old road to Lima was long and quiet . " * 12
  lines = [
    f"{FACTS} {filler} Where does Anna Berg live ?",
    "",
    "What does Bruno Silva keep ?",
  ]
  status, out, err = talk(lines)
  assert (status, out.split()) == (0, ["Oslo", "goat"])
  first, second = map(counts, err.splitlines())
  assert first[0] == 0 and first[1] > 64
  # All of the first turn but what lies behind the last lattice point.
  assert second[0] == (first[1] - 1) // 64 * 64
  assert second[1] < 64 + 20


def test_a_conversation_may_begin_with_a_system_message(talk):
  status, out, _ = talk(["Where does Anna Berg live ?"], f"--system={FACTS}")
  assert (status, out) == (0, "Oslo\n")


def test_an_answer_ends_before_a_stop(command):
  asked = ("generate", f"--prompt={FACTS}", SMALL, "--max_tokens=6")
  _, whole, _ = command(*asked)
  word = whole.split()[1]
  status, out, _ = command(*asked, f"--stop= {word}")
  assert (status, out) == (0, whole.split()[0] + "\n")


class Terminal(io.StringIO):
  """Where somebody types."""

  def isatty(self):
    return True


def test_what_is_typed_may_be_wrong_and_answers_may_be_interrupted(
  command, monkeypatch
):
  """The conversation goes on, with what was said of an answer."""
  asked, real = [], Engine.stream

  def stream(engine, messages, **options):
    asked.append([message["content"] for message in messages])
    yield next(real(engine, messages, **options))
    if len(asked) == 2:
      raise KeyboardInterrupt

  lines = ["Anna \udcff Berg", FACTS, "Where does Anna Berg live ?"]
  monkeypatch.setattr(sys, "stdin", Terminal("\n".join(lines)))
  monkeypatch.setattr(Engine, "stream", stream)
  status, out, err = command("generate", SMALL, "--max_tokens=3")
  assert status == 0 and err.endswith("> \n")
  assert "holds half of a character" in err
  first, second = out.splitlines()
  assert asked[1:] == [[FACTS], [FACTS, first, lines[-1]]] and second


def test_nobody_talks(talk):
  assert talk([""]) == (0, "", "")


@pytest.fixture
def model_folder(tmp_path):
  """The golden model of 96 ids with a tokenizer of printable ASCII."""
  folder = tmp_path / "model"
  folder.mkdir()
  for name in ("config.json", "model.safetensors"):
    shutil.copy(GOLDEN / name, folder)
  alphabet = ["Ġ", *map(chr, range(33, 127))]
  vocab = {character: i for i, character in enumerate(alphabet)}
  made = tokenizers.Tokenizer(models.BPE(vocab, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.save(str(folder / "tokenizer.json"))
  return folder


def test_a_folder_answers(command, talk, model_folder):
  config = {
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"
  }
  (model_folder / "tokenizer_config.json").write_text(json.dumps(config))
  flags = [f"--model={model_folder}", SMALL, "--max_length=128"]
  flags += ["--max_tokens=9", "--temperature=0.8", "--top_p=0.9", "--seed=3"]
  status, out, err = command("generate", "--prompt=Hello", *flags)
  assert status == 0 and len(out) == 10
  assert counts(err.strip()) == (0, 5, 9)
  # Without a generation prompt, the same text is the same prompt.
  assert talk(["Hello"], *flags[:1], *flags[2:])[:2] == (0, out)


def test_bad_input_is_one_sentence(command, model_folder):
  generate = ("generate", "--prompt=a")
  assert "temperature is -1" in refused(command(*generate, "--temperature=-1"))
  assert "top_p is 0.0" in refused(command(*generate, "--top_p=0"))
  assert "max_tokens is 0" in refused(command(*generate, "--max_tokens=0"))
  assert "is no flag of" in refused(command(*generate, "--requests=x"))
  assert "--system is for" in refused(command(*generate, "--system=b"))
  assert "capacity" in refused(command(*generate, "--capacity=much"))
  missing = refused(command(*generate, f"--model={model_folder / 'none'}"))
  assert "is no folder; tokenizer.json lies in one" in missing
  made = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
  made.save(str(model_folder / "tokenizer.json"))
  foreign = refused(command(*generate, f"--model={model_folder}"))
  assert "do not belong together" in foreign
