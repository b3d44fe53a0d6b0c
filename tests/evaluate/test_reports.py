import io
import json

import pytest
import rich.console

from fs_jax.evaluate import reports, results
from tests.evaluate import test_results


def test_table_and_report(tmp_path):
  truth = test_results.truth_of(30)
  rows = [
    results.score(
      "fast", test_results.top(test_results.noisy(truth, 0.6), 30), truth
    ).to_row(),
    results.score(
      "slow",
      test_results.top(test_results.noisy(truth, -0.1), 12),
      truth,
      ms_per_query=3.0,
    ).to_row(),
  ]
  out = io.StringIO()
  rich.console.Console(file=out, width=120).print(
    reports.table(rows, title="scenes")
  )
  assert "fast" in out.getvalue() and "100.0 [100.0, 100.0]" in out.getvalue()
  path = tmp_path / "report.json"
  report = {
    "gallery": 30,
    "queries": 60,
    "rows": rows,
    "seed": 0,
    "seconds": {"encode": 1.5},
    "device": "cpu",
    "chance": 25.0,
  }
  made_from = {"fast": {"digest": "ab"}}
  reports.write(path, made_from, report)
  written = path.read_text()
  read = json.loads(written)
  assert {k: read[k] for k in report} == report
  assert read["contract"] == made_from
  with pytest.raises(ValueError, match="JSON"):
    reports.write(path, made_from, {**report, "chance": float("nan")})
  assert path.read_text() == written
  assert reports.read(path, made_from) == read
  assert reports.read(path, {"fast": {"digest": "cd"}}) is None


def test_a_log_file_gets_every_column_whole(capsys):
  """Off a terminal rich takes 80 columns, which cuts names and intervals."""
  truth = test_results.truth_of(300)
  name = "fast_distilled_rerank@20"
  row = results.score(
    name, test_results.top(test_results.noisy(truth, 1), 300), truth
  ).to_row()
  reports.show({"queries": 600, "gallery": 300, "rows": [row]})
  said = capsys.readouterr().out
  assert name in said and "ms/query" in said
  low, high = row["R@1"][1:]
  assert f"{row['R@1'][0]:.1f} [{low:.1f}, {high:.1f}]" in said
