"""The demo on a small model and the first requests of its streams."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from flax import nnx
from matplotlib import image

from sparse_prefix_jax import HybridDecoder, demo, preset
from sparse_prefix_jax.contract import ContractError
from sparse_prefix_jax.demo import answers, job, results, serving
from sparse_prefix_jax.demo.stream import document_stream, recall_stream
from sparse_prefix_jax.training.trained import trained_model

CONFIG = preset("tiny", vocab_size=2048, ladder=(4,))
REQUESTS = 6


def run_small(out: pathlib.Path, **changes: Any) -> dict[str, Any]:
  """The written documents, for a model of random weights."""
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  return demo.run_demo(out, stream=document_stream(), model=model, **changes)


@pytest.fixture(scope="module")
def ran(
  tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, dict[str, Any]]:
  folder = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
  report = run_small(folder, requests=REQUESTS, levels=(2,))
  return folder, report


def _rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
  return {row["strategy"]: row for row in report["strategies"]}


def test_the_report_is_written_as_it_is_returned(ran: Any) -> None:
  folder, report = ran
  text = (folder / "report.json").read_text(encoding="utf-8")
  assert json.loads(text) == json.loads(json.dumps(report))
  assert {"machine", "versions", "date", "parameters"} <= report.keys()
  assert report["requests"] == REQUESTS


def test_every_strategy_is_compared_bit_for_bit(ran: Any) -> None:
  _, report = ran
  names = ["no_cache", "last", "sqrt", "dyadic", "block", "balanced", "dp"]
  assert list(_rows(report)) == [*names, "optimal", "conditional"]
  assert all(row["differing_bits"] == 0 for row in report["strategies"])
  assert all(row["evicted_states"] == 0 for row in report["strategies"])


def test_only_what_is_not_restored_is_recomputed(ran: Any) -> None:
  _, report = ran
  rows, total = _rows(report), report["tokens_total"]
  reference = rows.pop("no_cache")
  assert reference["tokens_recomputed"] == total
  assert reference["speed_up"] == 1.0
  assert reference["states_per_entry"] == 0.0
  for row in rows.values():
    assert row["tokens_total"] == total
    assert 0 < row["tokens_recomputed"] < total
    assert (total - row["tokens_recomputed"]) % CONFIG.numerics.chunk == 0


def test_states_and_bytes_are_counted(ran: Any) -> None:
  rows = _rows(ran[1])
  assert rows["last"]["states_per_entry"] == 1.0
  assert rows["block"]["states_per_entry"] == 2.0
  assert rows["sqrt"]["states_per_entry_peak"] > 30
  for row in rows.values():
    assert row["states_per_entry"] <= row["states_per_entry_peak"]
    assert 0 < row["bytes_peak"] <= serving.CAPACITY
    low, high = row["first_token_p50_seconds"], row["first_token_p95_seconds"]
    assert 0 < low <= high


def test_nothing_is_compiled_while_serving(ran: Any) -> None:
  assert ran[1]["compilations"]["serving"] == 0


def test_the_picture_is_an_image(ran: Any) -> None:
  pixels = image.imread(ran[0] / "pareto.png")
  assert pixels.shape[:2] == (720, 1500)
  assert float(np.std(pixels)) > 0


def test_answers_of_random_weights_are_not_counted(ran: Any) -> None:
  assert "controls" not in ran[1]
  assert {row["answers_right"] for row in ran[1]["strategies"]} == {None}


@pytest.fixture(scope="module")
def asked(
  tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], int]:
  """Questions about facts, and how many: few that ask about two documents."""
  stream, requests = recall_stream(), 4
  assert stream.first(requests).has_controls
  report = demo.run_demo(
    tmp_path_factory.mktemp("asked"),
    model=trained_model(ladder=(16,)),
    requests=requests,
    levels=(2,),
  )
  return report, requests


def test_answers_are_those_without_a_cache(asked: Any) -> None:
  report, requests = asked
  right = {row["answers_right"] for row in report["strategies"]}
  assert len(right) == 1
  assert right.pop() / requests == report["controls"]["restored"]
  assert all(row["differing_bits"] == 0 for row in report["strategies"])


def test_answers_come_from_the_states(asked: Any) -> None:
  controls = asked[0]["controls"]
  assert controls["answers"] == asked[1]
  assert controls["restored"] >= 0.9
  assert controls["zeros"] <= 0.25
  assert controls["another_document"] <= 0.25


def test_what_is_told_names_question_and_answer() -> None:
  stream = recall_stream().first(3)
  given = [stream.answers[0], stream.answers[0] + 1, stream.answers[2]]
  shares = {"restored": 0.5, "zeros": 0.0, "another_document": 0.25}
  text = answers.told(stream, given, shares)
  word = stream.tokenizer.decode([stream.answers[0]])
  assert f"-> {word} (right)" in text
  assert "(it is " in text and "zeros 0.0%, of another document 25.0%" in text


def test_the_table_has_a_line_for_each_strategy(ran: Any) -> None:
  report = ran[1]
  rows = [results.Result(**row) for row in report["strategies"]]
  lines = results.table(rows).splitlines()
  assert len(lines) == 1 + len(rows)
  assert lines[0].split()[:2] == ["strategy", "budget"]
  assert all(line.endswith(" 0") for line in lines[1:])


def test_a_changed_bit_is_an_error_that_names_the_strategy(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def flip(model: Any, cache: Any, prompt: Any) -> serving.Served:
    served = serving.serve_prompt(model, cache, prompt)
    if cache.store.planner.policy.name == "last":
      served.logits.view(np.uint32)[0, 0] ^= 1
    return served

  monkeypatch.setattr(job, "serve_prompt", flip)
  with pytest.raises(
    ContractError, match=r"under last \(1 bits\): the contract"
  ):
    run_small(tmp_path, requests=1, levels=(1,))
  report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
  assert _rows(report)["last"]["differing_bits"] == 1
  assert _rows(report)["sqrt"]["differing_bits"] == 0


def test_a_folder_that_cannot_be_written_is_refused_first(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def too_early(*_: Any, **__: Any) -> None:
    raise AssertionError("work began before the folder was tried")

  monkeypatch.setattr(job, "recall_stream", too_early)
  file = tmp_path / "a file"
  file.write_text("taken", encoding="utf-8")
  for out in (file, file / "below"):
    with pytest.raises(OSError, match=r"out is .*a file.* must be a folder"):
      demo.run_demo(out)
  assert file.read_text(encoding="utf-8") == "taken"


@pytest.mark.parametrize("requests", [0, -1, 1000])
def test_a_wrong_number_of_requests_is_refused(
  tmp_path: pathlib.Path, requests: int
) -> None:
  with pytest.raises(ValueError, match=f"requests is {requests}; the stream"):
    demo.run_demo(tmp_path, requests=requests)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("levels", [(), (0,), (4, -1)])
def test_a_wrong_level_is_refused(
  tmp_path: pathlib.Path, levels: tuple[int, ...]
) -> None:
  with pytest.raises(ValueError, match="levels is"):
    demo.run_demo(tmp_path, requests=1, levels=levels)
  assert not list(tmp_path.iterdir())


def test_strategies_are_compared_at_equal_numbers_of_states() -> None:
  tried = demo.strategies(lengths=[2400, 2600], levels=(1, 3))
  assert [s.label for s in tried] == [
    "no_cache",
    "last",
    "sqrt",
    "dyadic 256",
    *("block 1664", "balanced 1", "dp 1", "optimal 1", "conditional 1"),
    *("block 704", "balanced 3", "dp 3", "optimal 3", "conditional 3"),
  ]
  with pytest.raises(ValueError, match="lengths is empty"):
    demo.strategies(lengths=[])
