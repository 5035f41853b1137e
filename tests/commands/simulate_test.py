"""The command `simulate`; bad input never gives a traceback."""

import json

import pytest

from sparse_prefix_jax import (
  evaluation,
  page_bytes,
  prefill_flops,
  preset,
  state_bytes,
)
from sparse_prefix_jax.models.checkpoint import read_config
from tests.commands.refusal import refused

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
  "flags",
  [
    ["--capacity=sequences:9", "--placement=block", "--budget=64"],
    ["--capacity=sequences:9", "--interleave_seed=-1"],
    ["--capacity=states:9", "--placement=dp", "--budget=2", "--eviction=fifo"],
    ["--capacity=sequences:9", "--warmup_fraction=0", "--placement=sqrt"],
  ],
)
def test_simulate_tokens(command, tmp_path, tokens, flags):
  report = tmp_path / "new" / "report.json"
  status, out, _ = command(
    "simulate", f"--requests={tokens}", f"--report={report}", *flags
  )
  content = json.loads(report.read_text())
  assert status == 0 and f"{content['tokens_saved']} of" in out
  expected = 60 if "--warmup_fraction=0" in flags else 24
  assert content["requests"] == expected
  assert content["tokens_total"] == 256 * expected
  assert content["state_checkpoints_per_entry"] > 0
  assert content["state_checkpoints_peak"] > 0
  assert content["tokens_saved"] <= content["reusable_tokens"]


def test_simulate_a_trace(command, tmp_path, trace):
  report = tmp_path / "report.json"
  status, _, _ = command(
    "simulate",
    f"--requests={trace}",
    "--capacity=states:40",
    f"--report={report}",
    "--block_size=16",
  )
  content = json.loads(report.read_text())
  assert status == 0 and content["requests"] == 30
  assert content["warmup_requests"] == 0 and content["eviction"] == "index"
  assert content["placement"] == "adaptive"
  assert content["percent_of_upper_bound"] == 100
  assert content["tokens_saved"] >= 27 * 48


def test_simulate_counts_bytes_of_a_preset(command, tmp_path, tokens):
  report = tmp_path / "report.json"
  status, _, err = command(
    "simulate",
    f"--requests={tokens}",
    "--capacity=bytes:4GiB",
    "--preset=tiny",
    "--placement=block",
    "--budget=64",
    f"--report={report}",
  )
  content = json.loads(report.read_text())
  assert status == 0, err
  assert 0 < content["bytes_peak"] <= 4 * 2**30
  assert content["tokens_saved"] > 0


def simulated_bytes(command, tmp_path, tokens, *flags):
  """The report of a replay with a capacity in bytes, and what was printed."""
  report = tmp_path / "report.json"
  status, out, err = command(
    "simulate",
    f"--requests={tokens}",
    "--capacity=bytes:1MiB",
    "--placement=conditional",
    "--budget=1",
    f"--report={report}",
    *flags,
  )
  assert status == 0, err
  return json.loads(report.read_text()), out


def test_simulate_counts_bytes_of_a_folder(command, tmp_path, tokens, folder):
  content, _ = simulated_bytes(command, tmp_path, tokens, f"--model={folder}")
  config = read_config(folder, ladder=(1,))
  assert content["state_bytes"] == state_bytes(config)
  assert content["page_bytes"] == page_bytes(config)
  half, _ = simulated_bytes(
    command, tmp_path, tokens, f"--model={folder}", "--dtype=bfloat16"
  )
  assert half["page_bytes"] == content["page_bytes"] // 2
  assert half["state_bytes"] < content["state_bytes"]


def test_what_prefill_costs_comes_from_the_model(
  command, tmp_path, tokens, folder, monkeypatch
):
  costs = []

  def simulate(*arguments, sizes, **options):
    costs.append(sizes.cost)
    return evaluation_simulate(*arguments, sizes=sizes, **options)

  evaluation_simulate = evaluation.simulate
  monkeypatch.setattr(evaluation, "simulate", simulate)
  for flag in ("--preset=tiny", f"--model={folder}"):
    simulated_bytes(command, tmp_path, tokens, flag)
  config = read_config(folder, ladder=(1,))
  assert costs == [prefill_flops(preset("tiny")), prefill_flops(config)]


def test_pages_may_be_quantised(command, tmp_path, tokens):
  flags = ["--preset=tiny", "--page_dtype=int8"]
  content, _ = simulated_bytes(command, tmp_path, tokens, *flags)
  config = preset("tiny", page_dtype="int8")
  assert content["page_bytes"] == page_bytes(config)
  assert content["model"] == "tiny in float32, pages in int8"


def test_the_dtype_of_a_preset_may_be_another(command, tmp_path, tokens):
  flags = ["--preset=tiny", "--dtype=bfloat16"]
  content, _ = simulated_bytes(command, tmp_path, tokens, *flags)
  expected = page_bytes(preset("tiny", dtype="bfloat16"))
  assert content["page_bytes"] == expected


def test_the_share_of_states_may_be_given(command, tmp_path, tokens):
  def share(*flags):
    flags = ["--preset=tiny", *flags]
    content, _ = simulated_bytes(command, tmp_path, tokens, *flags)
    return content["state_share"]

  assert share() > 0
  assert share("--state_share=0.5") == pytest.approx(0.5, abs=0.02)
  assert share("--state_share=undivided") is None


def test_figures_are_printed_with_their_meanings(command, tmp_path, tokens):
  content, out = simulated_bytes(command, tmp_path, tokens, "--preset=tiny")
  first, *lines = out.splitlines()
  assert first.startswith(f"conditional: {content['tokens_saved']} of")
  assert len(lines) == len(content["meanings"])
  for line, (name, meaning) in zip(lines, content["meanings"].items()):
    assert line.startswith(f"{name} ") and line.endswith(f"  {meaning}")
  assert sum(content["reasons"].values()) == content["requests"]


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (["--model=DIR", "--preset=tiny"], "one model is needed"),
    (["--model=nowhere"], "nowhere/config.json does not exist"),
    (["--dtype=float16"], "dtype is 'float16'; it must be one of float32, bf"),
    (["--model=DIR", "--dtype=int8"], "dtype is 'int8'; it must be one of"),
    (["--preset=huge"], "preset is 'huge'; the presets are tiny, demo"),
    (
      ["--state_share=1"],
      "must be undivided or a number in (0, 1)",
    ),
    (["--state_share=nan"], "must be undivided or a number in (0, 1)"),
    (["--state_share=half"], "or a number in (0, 1), got 'half'"),
  ],
)
def test_models_and_shares_that_are_refused(
  command, tmp_path, tokens, folder, flags, sentence
):
  line = [f"--requests={tokens}", f"--report={tmp_path / 'r.json'}"]
  flags = [flag.replace("DIR", str(folder)) for flag in flags]
  result = command("simulate", *line, "--capacity=bytes:1MiB", *flags)
  assert sentence in refused(result)


def test_a_configuration_that_is_damaged_is_refused(
  command, tmp_path, tokens, folder
):
  line = [f"--requests={tokens}", f"--report={tmp_path / 'r.json'}"]
  line += ["--capacity=bytes:1MiB", f"--model={folder}"]
  (folder / "config.json").write_text("{")
  assert "config.json is not JSON" in refused(command("simulate", *line))
  (folder / "config.json").write_bytes(b"\xff\xfe")
  assert "config.json" in refused(command("simulate", *line))


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"requests": "missing.npz"}, "No such file or directory: missing.npz"),
    ({"requests": "stream.txt"}, "--requests must end in .npz, .jsonl"),
    ({"capacity": "20"}, "capacity must be sequences:N, states:K or bytes"),
    ({"placement": "marconi"}, "placement must be one of no_cache, last,"),
    ({"placement": "adaptive"}, "is for a capacity of states or bytes"),
    ({"placement": "block"}, "placement block needs a budget: tokens between"),
    ({"budget": "3"}, "placement last takes no budget, got 3"),
    ({"budget": "many"}, "budget=many"),
    ({"budget": "inf"}, "budget=inf: inf is no finite number"),
    ({"budget": "1e999"}, "budget=1e999: 1e999 is no finite number"),
    ({"requests": ""}, "--requests must not be empty"),
    ({"report": ""}, "--report must not be empty"),
    ({"time_unit": "s"}, "--time_unit is for traces, not for token files"),
    ({"skip_bad_lines": "true"}, "--skip_bad_lines is for traces, not for"),
    ({"time_unit": "us"}, "time_unit=us: value should be one of <ms|s>"),
    ({"warmup_fraction": "nan"}, "in [0, 1), got nan"),
    ({"block_size": "1.5"}, "block_size=1.5"),
    ({"placement": "dp", "budget": "-1"}, "must be at least 0, got -1"),
    ({"capacity": "sequences:" + "9" * 400}, "capacity must be sequences:N"),
    ({"capacity": "bytes:" + "9" * 400 + "GiB"}, "capacity in bytes must be"),
    ({"capacity": "bytes:4 apples"}, "capacity in bytes must be a whole"),
    ({"placement": "block", "budget": "9" * 5000}, "budget"),
    ({"eviction": "index"}, "eviction must be one of fifo, lru, got 'index'"),
    ({"block_size": "64"}, "--block_size is for traces"),
    ({"interleave_seed": "-2"}, "--interleave_seed must be -1 or in"),
    ({"warmup_fraction": "1"}, "in [0, 1), got 1.0"),
    ({"preset": "tiny"}, "--preset is for a capacity in bytes"),
    ({"model": "folder"}, "--model is for a capacity in bytes"),
    ({"dtype": "float32"}, "--dtype is for a capacity in bytes"),
    ({"state_share": "0.5"}, "--state_share is for a capacity in bytes"),
    ({"histogram": "h.npy"}, "--histogram is no flag of simulate"),
    ({"speed": "9"}, "Unknown command line flag 'speed'"),
  ],
)
def test_simulate_refuses(command, tmp_path, tokens, changes, sentence):
  report = tmp_path / "report.json"
  flags = {"requests": tokens, "capacity": "sequences:3", "report": report}
  result = command(
    "simulate", *(f"--{k}={v}" for k, v in (flags | changes).items())
  )
  assert sentence in refused(result) and len(refused(result)) < 300
  assert not report.exists()


def test_simulate_refuses_bad_traces(command, tmp_path, trace):
  flags = ["--capacity=states:3", f"--report={tmp_path / 'r.json'}"]
  contradiction = command(
    "simulate", f"--requests={trace}", "--block_size=32", *flags
  )
  assert "block_size=32 contradicts" in refused(contradiction)
  seeded = command(
    "simulate", f"--requests={trace}", "--interleave_seed=1", *flags
  )
  assert "traces are replayed in order" in refused(seeded)
  trace.write_bytes(trace.read_bytes()[:-20])
  cut = command("simulate", f"--requests={trace}", *flags)
  assert "is truncated or damaged after line" in refused(cut)
  empty = tmp_path / "empty.jsonl"
  empty.write_text("")
  nothing = command("simulate", f"--requests={empty}", *flags)
  assert "empty.jsonl has no requests" in refused(nothing)


def test_unwritable_reports_are_refused_before_the_work(
  command, tmp_path, tokens
):
  (tmp_path / "file").write_text("")
  for report in (tmp_path / "file" / "report.json", tmp_path):
    sentence = refused(
      command(
        "simulate",
        f"--requests={tokens}",
        "--capacity=sequences:3",
        f"--report={report}",
      )
    )
    assert str(tmp_path) in sentence


def test_nothing_is_written_over_what_is_read_or_written_too(
  command, tmp_path, tokens
):
  before, link = tokens.read_bytes(), tmp_path / "link.npz"
  link.symlink_to(tokens)
  new = tmp_path / "new.png"
  for files in (
    [f"--report={tokens}"],
    [f"--report={link}"],
    [f"--report={new}", f"--plot={tmp_path / 'x' / '..' / 'new.png'}"],
  ):
    flags = [f"--requests={tokens}", "--capacity=states:3", *files]
    assert "which is the same file" in refused(command("simulate", *flags))
  assert tokens.read_bytes() == before and not new.exists()


def test_refusals_leave_nothing_behind(command, tmp_path, tokens):
  before = sorted(tmp_path.rglob("*"))
  flags = [f"--requests={tokens}", f"--report={tmp_path / 'new' / 'r.json'}"]
  for bad in ("--eviction=marconi", "--warmup_fraction=1", "--placement=block"):
    refused(command("simulate", *flags, "--capacity=states:3", bad))
  assert sorted(tmp_path.rglob("*")) == before


def test_what_a_trace_makes_its_reader_assume_is_told(command, tmp_path):
  path = tmp_path / "chats_blksz_16.jsonl"
  report = tmp_path / "report.json"
  lines = [
    json.dumps({"timestamp": t, "input_length": 32, "hash_ids": [1, 2]})
    for t in (1.5, 0.25)
  ]
  path.write_text("\n".join([*lines, "no JSON"]))
  line = ["simulate", f"--requests={path}", f"--report={report}"]
  line.append("--capacity=states:9")
  assert "line 3 is not JSON" in refused(command(*line))
  status, out, err = command(*line, "--skip_bad_lines")
  told = [text for text in err.splitlines() if text.startswith("sparse_prefix")]
  start = "sparse_prefix_jax: chats_blksz_16.jsonl: "
  assert status == 0 and len(told) == 3 and "tokens saved" in out
  assert told[0].startswith(start + "1 of its 3 lines are skipped, the first")
  assert told[1].startswith(start + "its timestamps are no whole numbers")
  assert told[2].startswith(start + "1 of its 2 requests are earlier than")
  status, _, err = command(*line, "--skip_bad_lines", "--time_unit=s")
  assert status == 0 and "whole numbers" not in err
  wrong = tmp_path / "chats.jsonl"
  wrong.write_text("\n".join(lines))
  result = command(*line[:1], f"--requests={wrong}", *line[2:])
  assert "block_size=16 would fit all 2 lines" in refused(result)


def test_folders_named_like_files_are_refused(command, tmp_path):
  for name in ("t.npz", "t.jsonl", "t.jsonl.gz", "t.jsonl.xz"):
    (tmp_path / name).mkdir()
    flags = [f"--requests={tmp_path / name}", "--report=r.json"]
    result = command("simulate", *flags, "--capacity=states:3")
    assert f"Is a directory: {tmp_path / name}" in refused(result)


def test_an_average_budget_may_be_a_fraction(command, tmp_path, tokens):
  report = tmp_path / "report.json"
  line = [
    "simulate",
    f"--requests={tokens}",
    "--capacity=sequences:9",
    "--placement=conditional",
    f"--report={report}",
  ]
  assert command(*line, "--budget=0.5")[0] == 0
  assert json.loads(report.read_text())["budget"] == 0.5
  for bad in ("half", "nan"):
    status, _, err = command(*line, f"--budget={bad}")
    assert status == 2 and "budget" in err and err.count("\n") == 1


@pytest.mark.parametrize("capacity", ["sequences:9", "states:9", "bytes:4GiB"])
def test_simulate_draws_a_picture(command, tmp_path, tokens, capacity):
  picture, report = tmp_path / "new" / "plot.png", tmp_path / "report.json"
  status, _, err = command(
    "simulate",
    f"--requests={tokens}",
    f"--capacity={capacity}",
    f"--report={report}",
    f"--plot={picture}",
  )
  assert status == 0, err
  assert picture.read_bytes().startswith(b"\x89PNG")
  assert "outcomes" not in json.loads(report.read_text())


def test_a_picture_of_another_form_is_refused(command, tmp_path, tokens):
  report = tmp_path / "report.json"
  asked = command(
    "simulate",
    f"--requests={tokens}",
    "--capacity=states:9",
    f"--report={report}",
    "--plot=plot.svg",
  )
  assert "--plot must end in .png, got plot.svg" in refused(asked)
  assert not report.exists()
