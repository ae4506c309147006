"""The page of results: whole, of reports alone, and honest about what differs."""

import json
import pathlib
import re

import pytest

from examples.shapes import results

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'results.md'
REPORTS = ROOT / 'docs' / 'results'
FOUND = 'zero_shot.t2v_r1'


def flat(text):
  return ' '.join(text.split())


def write(folder, name, figures=None, **made):
  """A report with the names of a real one, all figures 50 but for some, intervals 45 to 55."""
  real = json.loads((REPORTS / 'seed0.json').read_text())
  figure = {'_low': 45.0, '_high': 55.0}
  report = {key: figure.get(key[key.rfind('_') :], 50.0) for key in real if key != 'made'}
  report |= {'made': real['made'] | made} | (figures or {})
  (folder / f'{name}.json').write_text(json.dumps(report))


@pytest.fixture
def reports(tmp_path):
  """Two seeds and, of the first, another run."""
  write(tmp_path, 'b', {FOUND: 40.0}, seed=0)
  write(tmp_path, 'c', {FOUND: 43.5}, seed=0, environment={'PJRT_NPROC': '4'})
  write(tmp_path, 'a', {FOUND: 51.0}, seed=1)
  return tmp_path


def render(folder):
  return results.render(results.read(folder))


def test_the_page_is_that_of_its_reports():
  """`python -m examples.shapes.results` makes it."""
  assert PAGE.read_text() == render(REPORTS)


def test_the_readme_has_the_figures_of_the_page():
  short = PAGE.read_text().split('\n## In short\n')[1].split('\n## ')[0]
  assert flat(short) in flat((ROOT / 'README.md').read_text())


def test_the_page_is_whole(reports):
  text = render(reports)
  assert 'python -m examples.shapes.results' in text and 'of 3 demos' in text
  assert '## Missing' not in text and '| – |' not in text and '{' not in text
  rows = [line for line in text.split('\n') if line.startswith('| text finds its clip, R@1 (')]
  # Interval, difference from the first run of the seed; the mean leaves the other run out.
  assert rows[1].endswith(
    '| 40.0 (45–55) | 43.5 (45–55) | +3.5 | 51.0 (45–55) | 45.5 (40.0–51.0) |'
  )
  # One line below the other, or it is no table.
  for line, after in zip(text.split('\n'), text.split('\n')[1:], strict=False):
    if line.startswith('| '):
      assert not after or line.count(' |') == after.count(' |')
  assert re.search(r'\| zero-shot \| 17 \| 0.0 \| 11.0 \| 0.0 \| 3.5 \|', text)
  assert '| seed 0 again | ' in text and '`PJRT_NPROC=4`' in text
  assert 'All are of one code and the same versions' in text


def test_a_sentence_follows_the_figures(reports):
  text = flat(render(reports))
  assert 'from random weights in none of 3 runs; with intervals apart in none of 3 runs.' in text
  assert 'contrast alone do as well here' in text
  assert 'about shape, colour, count, direction, change, order and depth are answered' in text
  for name, seed in (('b', 0), ('c', 0), ('a', 1)):
    better = {'qa.accuracy': 60.0 + (name != 'a'), 'qa.accuracy_low': 55.0 + (name != 'a')}
    depth = {f'qa.accuracy{kind}_low': 50.0 + (name == 'b') for kind in ('_shape', '_depth')}
    write(reports, name, better | depth, seed=seed)
  text = flat(render(reports))
  assert 'from random weights in all 3 runs; with intervals apart in 2 of 3 runs.' in text
  assert 'about colour, count, direction, change and order are answered no better' in text


def test_a_figure_that_a_report_lacks_is_said(reports):
  report = json.loads((reports / 'c.json').read_text())
  del report['qa.accuracy_order']
  (reports / 'c.json').write_text(json.dumps(report))
  text = render(reports)
  assert re.search(r'\| order .*: fine-tuned \| 50.0 \(45–55\) \| – \| – \| 50.0', text)
  assert re.search(r'Not in the reports: order .*: fine-tuned \(seed 0 again\)\.$', text, re.M)
  assert 'averaged over time in none of 2 runs' in flat(text)


def test_other_code_and_versions_are_said(reports):
  write(reports, 'a', seed=1, code='abc+changes', versions={'jax': '9'})
  text = flat(render(reports))
  assert 'The runs are not of the same code and versions' in text
  assert '- seed 1: `abc+changes`, jax 9' in text and '| `abc`, changed |' in text
  assert 'All are of one code' not in text


def test_what_is_no_result_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'has no reports \(\*.json\); copy report.json'):
    results.read(tmp_path)
  write(tmp_path, 'a', quick=True)
  with pytest.raises(ValueError, match='a.json was made with --quick: its figures mean nothing'):
    results.read(tmp_path)
  (tmp_path / 'a.json').write_text('{"zero_shot.t2v_r1": 1.0}')
  with pytest.raises(ValueError, match='does not say how it was made .* Make the demo again'):
    results.read(tmp_path)
