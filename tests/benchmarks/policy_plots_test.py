from benchmarks.policy_plots import plot_streams


def row(stream, **capacity):
  saved = {"last": 40.0, "adaptive": 80.0}
  return {
    "stream": stream,
    "upper_bound_tokens": 100,
    "percent_of_upper_bound": saved,
    **capacity,
  }


def test_a_picture_of_every_stream_with_several_capacities(tmp_path):
  folder = tmp_path / "new"
  rows = [row("a.b16.jsonl.xz", slots=k, hindsight_tokens=99) for k in (4, 8)]
  rows.append(row("a.b16.jsonl.xz:9", slots=4, hindsight_tokens=99))
  written = plot_streams(rows, folder, prefix="states")
  assert [path.name for path in written] == ["states_a.png"]
  rows = [row("b.jsonl", capacity_bytes=k << 30) for k in (1, 2)]
  written += plot_streams(rows, folder, prefix="bytes")
  assert sorted(written, reverse=True) == sorted(folder.iterdir(), reverse=True)
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
