"""One model after another: an error in one is told, and stops nothing."""

import pytest

from benchmarks.device import checked_models
from sparse_prefix_jax import preset
from sparse_prefix_jax.contract import Finding

FOUND = Finding(0, "gated_delta_net", "a rule", 3)


@pytest.fixture
def checks(monkeypatch):
  """The contract, checked in no time; of the narrow model that fails."""

  def check(model, lives):
    assert lives == 5
    if model.config.width == 64:
      raise RuntimeError("out of\nmemory")
    return (FOUND,)

  monkeypatch.setattr(checked_models, "check", check)


@pytest.mark.usefixtures("checks")
def test_an_error_is_told_and_the_next_model_is_checked(capsys):
  tiny, demo = preset("tiny", ladder=(1, 4)), preset("demo")
  results = list(
    checked_models.checked_models({"tiny": tiny, "demo": demo}, lives=5)
  )
  failed, found = results
  assert failed["error"] == "RuntimeError: out of memory"
  assert "findings" not in failed
  assert "Traceback" in capsys.readouterr().err
  assert found["findings"] == [FOUND._asdict()]
  assert "error" not in found
  fields = {"device", "model", "dtype", "ladder", "lives", "seconds"}
  assert fields < set(failed)
  assert fields < set(found)
  told = failed["model"], failed["dtype"], failed["ladder"], failed["lives"]
  assert told == ("tiny", "float32", (1, 4), 5)
