"""Training from beginning to end, killed and gone on with."""

import errno
import json
import os
import pathlib
import re
import shutil
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sparse_prefix_jax import HybridDecoder
from sparse_prefix_jax.training import curve, job
from sparse_prefix_jax.training.checkpoint import CHECKPOINT_FILE
from sparse_prefix_jax.training.weights import (
  filled,
  load_arrays,
  load_weights,
  named_leaves,
  save_arrays,
)
from sparse_prefix_jax.workloads.recall.documents import RecallShape
from sparse_prefix_jax.writable import alone_in
from tests.training import models

STEPS = 5


def train(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
  given: dict[str, Any] = {"config": models.CONFIG, "stages": models.STAGES}
  return job.train(folder, **{"steps": STEPS} | given | changes)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
  folder = tmp_path_factory.mktemp("training") / "made" / "by train"
  return folder, train(folder)


def test_a_killed_training_goes_on_with_the_same_bits(
  ran: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """What was done after the last checkpoint is lost, and done again."""
  taken, write = [], job.recall_batch

  def killed(*arguments: Any, **options: Any) -> Any:
    taken.append(arguments)
    if len(taken) == STEPS - 1:
      raise KeyboardInterrupt
    return write(*arguments, **options)

  monkeypatch.setattr(job, "_SAVE_EVERY", 2)
  with monkeypatch.context() as patch:
    patch.setattr(job, "recall_batch", killed)
    with pytest.raises(KeyboardInterrupt):
      train(tmp_path)
  held = load_file(tmp_path / CHECKPOINT_FILE)
  assert held["step"] == 2 and len(taken) == 4
  assert train(tmp_path) == ran[1]
  for name in (CHECKPOINT_FILE, job.WEIGHTS_FILE, "curve.json"):
    assert (tmp_path / name).read_bytes() == (ran[0] / name).read_bytes()


def test_the_loss_falls_and_the_curve_is_written(ran: Any) -> None:
  folder, report = ran
  assert report["loss"][-1] < report["loss"][0]
  assert len(report["loss"]) == len(report["right"]) == STEPS
  assert json.loads((folder / "curve.json").read_text("utf-8")) == report
  assert (folder / "curve.png").read_bytes()[1:4] == b"PNG"
  tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
  assert tokenizer["model"]["vocab"]["▁Oslo"] < models.CONFIG.vocab_size


def test_the_weights_are_read_back(ran: Any) -> None:
  model = HybridDecoder(models.CONFIG, rngs=nnx.Rngs(9))
  for file in (job.WEIGHTS_FILE, CHECKPOINT_FILE):
    stored = load_file(ran[0] / file)
    for name, leaf in named_leaves(load_weights(ran[0] / file, model)).items():
      held = stored.get(name, stored.get(f"model.{name}"))
      assert leaf.dtype == np.float32
      assert np.array_equal(leaf, held.astype(np.float32))


def test_the_checkpoint_of_another_training_is_refused(ran: Any) -> None:
  with pytest.raises(ValueError, match=r"seed is 1, and .* has 0; go on with"):
    train(ran[0], seed=1)
  with pytest.raises(ValueError, match=r"steps is 9, and .* has 5; go on with"):
    train(ran[0], steps=9)
  other = r"is of another model or other stages"
  config = models.CONFIG.replace(max_length=4096)
  with pytest.raises(ValueError, match=other):
    train(ran[0], config=config)
  with pytest.raises(ValueError, match=other):
    train(ran[0], stages=2 * models.STAGES)


def test_a_checkpoint_that_is_a_link_to_nothing_is_refused(
  tmp_path: pathlib.Path,
) -> None:
  """A disk that is not mounted, perhaps: not a training from the start."""
  link = tmp_path / CHECKPOINT_FILE
  link.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match="is a link to what is not there"):
    train(tmp_path)
  assert link.is_symlink()


def test_a_damaged_checkpoint_is_refused(
  ran: Any, tmp_path: pathlib.Path
) -> None:
  content = (ran[0] / CHECKPOINT_FILE).read_bytes()
  (tmp_path / CHECKPOINT_FILE).write_bytes(content[:-1])
  with pytest.raises(ValueError, match="is damaged: its tensors have"):
    train(tmp_path)
  arrays = load_arrays(ran[0] / CHECKPOINT_FILE)
  for name, wrong, message in (
    ("step", None, "holds nothing as step; it must be"),
    ("seed", np.zeros(2, np.int64), "holds int64.* as seed; it must be"),
    ("history", arrays["history"][1:], r"as history; .* float32\(5, 3\)"),
    ("step", np.int64(-1), r"as history; .* float32\(0, 3\)"),
    ("stage", np.int64(9), "is damaged: its history leads to .*stage=0"),
  ):
    held = {k: v for k, v in arrays.items() if k != name or wrong is not None}
    if wrong is not None:
      held[name] = wrong
    save_arrays(tmp_path / CHECKPOINT_FILE, held)
    with pytest.raises(ValueError, match=message):
      train(tmp_path)
  arrays["other"] = np.zeros(1, np.int8)
  save_file(arrays, tmp_path / CHECKPOINT_FILE)
  with pytest.raises(ValueError, match="'other' is I8, which is not written"):
    train(tmp_path)


def test_one_turned_bit_of_the_weights_is_noticed(
  ran: Any, tmp_path: pathlib.Path
) -> None:
  model = HybridDecoder(models.CONFIG, rngs=nnx.Rngs(9))
  for file, load in (
    (CHECKPOINT_FILE, lambda _: train(tmp_path)),
    (job.WEIGHTS_FILE, lambda path: load_weights(path, model)),
  ):
    content = bytearray((ran[0] / file).read_bytes())
    content[-5] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match="damaged: its arrays have another ch"):
      load(tmp_path / file)


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_what_is_not_finite_ends_a_training(
  ran: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
  """The checkpoint before it stays."""
  step, taken = job.make_step(STEPS), []

  def broken(*inputs: Any) -> Any:
    state, report = step(*inputs)
    taken.append(report)
    if len(taken) < 4:
      return state, report
    if what == "loss":
      return state, report._replace(loss=np.float32(np.nan))
    nan = jax.tree.map(lambda x: x * jnp.nan, state.model)
    return state._replace(model=nan), report

  monkeypatch.setattr(job, "_SAVE_EVERY", 2)
  with monkeypatch.context() as patch:
    patch.setattr(job, "make_step", lambda _: broken)
    sentence = {
      "loss": "loss is nan at step 4; the training ends, and out keeps the la",
      "weights": r"model.* is not finite after step 4; .* keeps the checkpoin",
    }
    with pytest.raises(ValueError, match=sentence[what]):
      train(tmp_path)
  assert load_file(tmp_path / CHECKPOINT_FILE)["step"] == 2
  assert train(tmp_path) == ran[1]


def test_what_cannot_be_trained_is_refused_first(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def too_early(*_: Any, **__: Any) -> None:
    raise AssertionError("work began before the folder was tried")

  monkeypatch.setattr(job, "HybridDecoder", too_early)
  file = tmp_path / "a file"
  file.write_text("taken", encoding="utf-8")
  with pytest.raises(OSError, match=r"out is .*a file.* must be a folder"):
    train(file / "below")
  with pytest.raises(ValueError, match="steps is 0; it must be an int of 1"):
    train(tmp_path, steps=0)
  with pytest.raises(ValueError, match="seed is -1; it must be an int of 0"):
    train(tmp_path, seed=-1)
  with pytest.raises(ValueError, match="stages is empty"):
    train(tmp_path, stages=())
  with pytest.raises(ValueError, match="vocab_size is 64; the recall task"):
    train(tmp_path, config=models.CONFIG.replace(vocab_size=64))
  with pytest.raises(ValueError, match="stages has 7 entries; there are"):
    train(tmp_path, stages=models.STAGES * 7)
  longer = *models.STAGES, RecallShape(tokens=300, facts=5, questions=10)
  with pytest.raises(
    ValueError, match=r"stages\[1\] has tokens = 300; max_length .* is 256"
  ):
    train(tmp_path, config=models.CONFIG.replace(max_length=256), stages=longer)


@pytest.mark.parametrize("steps", [1, 12, 700])
def test_a_curve_of_any_length_is_seen(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
  """One of few steps was a line of one point: nothing."""
  drawn, library = [], curve.figures()

  def figure(**options: Any) -> Any:
    drawn.append(library.Figure(**options))
    return drawn[-1]

  monkeypatch.setattr(curve, "figures", lambda: SimpleNamespace(Figure=figure))
  report = {"right": [0.5] * steps, "tokens": [128.0] * steps}
  curve.draw_curve(report, tmp_path / "curve.png")
  assert (tmp_path / "curve.png").stat().st_size > 1000
  for axes in drawn[0].axes:
    (line,) = axes.lines
    assert len(line.get_xdata()) > 1 or line.get_marker() == "."
  assert [x.get_text() for x in drawn[0].axes[1].get_yticklabels()] == ["128"]


def test_every_type_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
  numbers = np.arange(6).reshape(2, 3)
  types = ("float32", "bfloat16", "float16", "int64", "int32", "uint32", "bool")
  arrays = {name: numbers.astype(jnp.dtype(name)) for name in types}
  save_arrays(tmp_path / "all.safetensors", arrays)
  read = load_arrays(tmp_path / "all.safetensors")
  for name, array in arrays.items():
    assert read[name].dtype == array.dtype
    assert read[name].tobytes() == array.tobytes()


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
  path, full = tmp_path / "a.safetensors", OSError(errno.ENOSPC, "full")
  save_arrays(path, {"a": np.zeros(3)})
  before = path.read_bytes()
  monkeypatch.setattr("os.fsync", mock.Mock(side_effect=full))
  with pytest.raises(OSError, match=r"full: .*a\.safetensors"):
    save_arrays(path, {"a": np.ones(3)})
  assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == before


def test_a_full_disk_is_told_by_the_name_of_any_file(
  ran: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """And what was there is whole: words and curve were cut, without a name."""
  folder = shutil.copytree(ran[0], tmp_path / "out")
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  full, fsync = OSError(errno.ENOSPC, "full"), os.fsync
  files = CHECKPOINT_FILE, job.WEIGHTS_FILE, job.TOKENIZER, "curve.png"
  for written, name in enumerate(files):
    outcomes = [*[mock.DEFAULT] * written, full]
    sync = mock.Mock(side_effect=outcomes, wraps=fsync)
    with monkeypatch.context() as patch:
      patch.setattr("os.fsync", sync)
      with pytest.raises(OSError, match=f"full: .*{re.escape(name)}'"):
        train(folder)
    assert sync.call_count == written + 1
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert held == before


def test_two_trainings_do_not_share_a_folder(ran: Any) -> None:
  """They wrote the same files: one of the two ended in the middle."""
  with (
    alone_in(ran[0]),
    pytest.raises(OSError, match=r"out is .*, which another process writes"),
  ):
    train(ran[0])
  assert train(ran[0]) == ran[1]


def test_leaves_of_one_name_are_refused() -> None:
  """One of the two would be lost, and both be read as the other."""
  with pytest.raises(ValueError, match=r"two leaves are called 'a\.b'; keys"):
    named_leaves({"a": {"b": np.ones(1)}, "a.b": np.zeros(1)})
  with pytest.raises(ValueError, match=r"a is 1\.0; it must be an array"):
    filled({"a": 1.0}, {"a": np.ones(())}, "file")
