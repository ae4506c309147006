"""Runs side by side: what differs, paired differences by hand, a page that stands alone."""

import json
import subprocess
import sys

import pytest

from alpro_jax.evaluation import card, compare
from tests import patience, test_card, test_report, tiny_run

EVIL = '<script>alert(1)</script>'


def write_run(folder, *, options=None, report=None, ranks=None, answers=None, **changes):
  """A folder as a run and evaluate.py leave it; returns its path as a str."""
  (folder / 'test').mkdir(parents=True)
  if options is not None:
    (folder / 'config.json').write_text(json.dumps(options))
  if report is not None:
    (folder / 'report.json').write_text(json.dumps(report))
  rows = ranks if answers is None else answers
  if rows is not None:
    content = {
      'title': 'A set, test',
      'date': '2026-01-01',
      'data': {'digest': 'abc'},
      'scoring': {'rule': 'matching', 'k': 'all pairs'},
      'metrics': {'t2v_r1': {'value': 50.0, 'low': 40.0, 'high': 60.0}, 'texts': {'value': 4.0}},
      'run': {'seed': 1, 'train.steps': 10},
    } | changes
    (folder / 'test' / 'card.json').write_text(json.dumps(content))
    name = 'ranks.jsonl' if answers is None else 'answers.jsonl'
    (folder / 'test' / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(folder)


def ranked(*ranks, videos='aabc'):
  return [
    {'video': video, 'text': f'text {i}', 'rank': rank}
    for i, (video, rank) in enumerate(zip(videos, ranks, strict=True))
  ]


def test_options_that_differ(tmp_path):
  common = {'data': {'frames': 4, 'sources': [{'path': 'x'}]}, 'seed': 1}
  other = {'data': {'frames': 8, 'sources': [{'path': 'x'}, {'path': 'y'}]}, 'seed': 1}
  a = write_run(tmp_path / 'a', options=common | {'new': 0.00001})
  b = write_run(tmp_path / 'b', options=other)
  assert compare.differing(compare.read([a, b])) == [
    ('data.frames', '4', '8'),
    ('new', '1e-05', '–'),
    ('data.sources[1].path', '–', 'y'),
  ]
  # A card says the main options alone; of the others nobody knows.
  c = write_run(tmp_path / 'c', ranks=ranked(1, 1, 1, 1))
  d = write_run(tmp_path / 'd', options=common | {'seed': 2})
  assert compare.differing(compare.read([c, d])) == [('seed', '1', '2')]


def test_paired_differences_by_hand(tmp_path):
  a = write_run(tmp_path / 'a', ranks=ranked(1, 2, 7, 1))
  b = write_run(tmp_path / 'b', ranks=ranked(1, 1, 3, 11))
  first, other = compare.read([a, b])
  (key,) = first.measured
  found = {row.figure: row for row in compare.paired(first, other, key)}
  assert found.keys() == {'t2v_r1', 't2v_r5', 't2v_r10'}
  r1, r5, r10 = found.values()
  assert (r1.value, r1.better, r1.worse, r1.examples, r1.label) == (0.0, 1, 1, 4, 'B')
  assert (r5.value, r5.better, r5.worse) == (0.0, 1, 1)
  assert (r10.value, r10.better, r10.worse) == (-25.0, 0, 1)
  # Videos a, b, c are drawn three times: at worst c alone, at best none of it.
  assert (r10.low, r10.high) == (-100.0, 0.0)
  (same,) = {row[3:6] for row in compare.paired(first, first, key)}
  assert same == (0.0, 0.0, 0)


def test_questions_are_paired_by_what_was_asked(tmp_path):
  """In any order, a question that is asked twice as often as that; else not at all."""
  row = {'video': 'a', 'question': 'what?', 'answer': 'up', 'right': True}
  rows = [row, row | {'right': False}, row | {'video': 'b', 'right': False}]
  better = [row | {'video': 'b'}, *rows[:2]]
  a, b = write_run(tmp_path / 'a', answers=rows), write_run(tmp_path / 'b', answers=better)
  c = write_run(tmp_path / 'c', answers=rows[:2])
  runs = compare.read([a, b, c])
  (key,) = runs[0].measured
  (found,) = compare.paired(*runs[:2], key)
  assert (found.figure, found.better, found.worse) == ('accuracy', 1, 0)
  assert found.value == pytest.approx(100 / 3)
  assert compare.paired(runs[0], runs[2], key) == []
  assert 'do not keep the same examples' not in test_report.Page(compare.render(runs[:2])).text
  text = ' '.join(test_report.Page(compare.render(runs[::2])).text.split())
  assert 'do not keep the same examples' in text


def test_only_what_was_measured_the_same_way_stands_together(tmp_path):
  """Other data and another rule are sections of their own; of one kind the newest counts."""
  a = write_run(tmp_path / 'a', ranks=ranked(1, 1, 1, 1))
  b = write_run(tmp_path / 'b', ranks=ranked(1, 1, 1, 1), data={'digest': 'another'})
  old = write_run(
    tmp_path / 'b' / 'old', ranks=ranked(2, 2, 2, 2), data={'digest': 'another'}, date='2025-01-01'
  )
  c = write_run(tmp_path / 'c', ranks=ranked(1, 1, 1, 1), scoring={'rule': 'matching', 'k': 128})
  runs = compare.read([a, b, c])
  assert [len(run.measured) for run in runs] == [1, 1, 1]
  assert len({key for run in runs for key in run.measured}) == 3
  (kept,) = runs[1].measured.values()
  assert kept.card['date'] == '2026-01-01' and old
  text = test_report.Page(compare.render(runs)).text
  assert all(f'Measured for {label} alone' in text for label in 'ABC')


def test_of_several_cards_those_that_were_shown_the_same_stand_together(tmp_path):
  def write(run, name, frames, date, *ranks, step=7):
    facts = {'frames': {'per_clip': frames}, 'checkpoint': {'step': step}, 'date': date}
    return write_run(tmp_path / run / name, ranks=ranked(*ranks), **facts)

  write('a', 'four', 4, '2026-01-01', 1, 1, 1, 1)
  write('a', 'eight', 8, '2026-01-02', 9, 9, 9, 9)
  write('b', 'four', 4, '2026-01-02', 1, 1, 1, 1, step=9)
  write('b', 'eight', 8, '2026-01-01', 9, 9, 9, 9, step=9)
  write('c', 'two', 2, '2026-01-01', 1, 1, 1, 1)
  a, b, c = (str(tmp_path / name) for name in 'abc')
  runs = compare.read([a, b])
  (key,) = runs[0].measured
  assert {row.value for row in compare.paired(*runs, key)} == {0.0}
  assert compare.shown_otherwise(runs, key) == [('step', [('A', '7'), ('B', '9')])]
  # Where there is no such card the page says what differs.
  text = ' '.join(test_report.Page(compare.render(compare.read([b, c]))).text.split())
  assert 'Not the same in all, frames of a clip: A 4, B 2.' in text


def test_the_page_stands_alone(tmp_path):
  report = {'step': 1200, 'clips_per_second': 3.5, 'waiting_share': 0.25, 'metrics': {'loss': 0.5}}
  report['evaluation'] = {'eval/t2v_r1': 41.0, 'eval/0/t2v_r1': 42.0}
  metrics = {f't2v_r{k}': {'value': 60.0, 'low': 51.0, 'high': 69.0} for k in (1, 10, 5)}
  metrics['t2v_mean_rank'] = {'value': 7.25, 'low': 5.0, 'high': 9.0}
  a = write_run(tmp_path / 'a', options={'name': EVIL}, report=report, ranks=ranked(1, 2, 7, 1))
  b = write_run(tmp_path / 'b', options={'name': ''}, ranks=ranked(1, 1, 1, 1), metrics=metrics)
  html = compare.render(compare.read([a, b]))
  shown = test_report.readable(html)
  c = write_run(tmp_path / 'c', options={'name': ''}, report={**report, 'evaluation': None})
  assert '1,200' in compare.render(compare.read([a, c]))  # It had nothing to be evaluated on.
  assert 'script' not in [tag for tag, _ in shown.tags] and 'http' not in html
  text = ' '.join(shown.text.replace('\N{NO-BREAK SPACE}', ' ').split())
  for part in (
    '50.0 %',
    '40.0 to 60.0',
    '51.0 to 69.0',
    EVIL,
    "''",
    '1,200',
    '41',
    'B − A',
    '7.25',
  ):
    assert part in text, part
  order = [text.index(f'text to video, {name}') for name in ('R@1', 'R@5', 'R@10', 'mean rank')]
  assert order == sorted(order)
  main, _, folded = html.partition('<details><summary>1 more')
  assert 'eval/t2v_r1' in main and 'eval/0/t2v_r1' not in main and 'eval/0/t2v_r1' in folded
  assert compare.name_of('v2t_grouped_r5') == 'video to text, captions grouped, R@5'
  assert compare.name_of('accuracy_what') == 'right, what'


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
  """Cards write texts as they are; U+2028 is a line end for str.splitlines alone."""
  rows = ranked(1, 2, 1, 1)
  run = write_run(tmp_path / 'a', options={'seed': 1}, ranks=rows)
  rows[0]['text'] = 'a\u2028b\x85c'
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  (tmp_path / 'a' / 'test' / 'ranks.jsonl').write_text(lines, encoding='utf-8')
  first, _ = compare.read([run, run])
  (measured,) = first.measured.values()
  assert measured.examples == rows


def test_what_cannot_be_compared(tmp_path):
  a = write_run(tmp_path / 'a', options={'seed': 1}, ranks=ranked(1, 1, 1, 1))
  with pytest.raises(ValueError, match='got 1 runs; give 2 to 26'):
    compare.read([a])
  with pytest.raises(FileNotFoundError, match='none has neither config.json nor a card.json'):
    compare.read([a, str(tmp_path / 'none')])
  (tmp_path / 'a' / 'test' / 'ranks.jsonl').write_text('{"video"')
  with pytest.raises(ValueError, match='ranks.jsonl is damaged: .*; evaluate again'):
    compare.read([a, a])
  (tmp_path / 'a' / 'test' / 'card.json').write_text('[1]')
  with pytest.raises(ValueError, match='card.json is damaged: .*; write it again'):
    compare.read([a, a])


def test_the_command_takes_cards_as_they_are_written(tmp_path):
  for name, evaluated in (('search', test_card.search()), ('answers', test_card.answers())):
    card.write(card.make(evaluated), tmp_path / name)
  done = subprocess.run(
    [
      sys.executable,
      tiny_run.ROOT / 'launch' / 'compare.py',
      *(tmp_path / name for name in ('search', 'answers', 'search')),
      f'--output={tmp_path}/page.html',
    ],
    capture_output=True,
    text=True,
    timeout=patience.seconds(60),
  )
  assert done.returncode == 0, done.stderr
  assert f'A: {tmp_path}/search, 1 cards' in done.stdout
  assert 'task' in (tmp_path / 'page.html').read_text()
  assert 'C − A' in (tmp_path / 'page.html').read_text()
