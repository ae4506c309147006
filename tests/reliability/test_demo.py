"""The whole way, small: videos, set, tokenizer, training, figures, page."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.reliability

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(script, *flags):
  return subprocess.run(
    [sys.executable, ROOT / 'launch' / f'{script}.py', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_demo_runs_and_goes_on_where_it_was(tmp_path):
  output = tmp_path / 'demo'
  first = _run('demo', f'--output={output}', '--quick')
  assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
  assert 'The figures mean nothing.' in first.stdout
  figures = json.loads((output / 'report.json').read_text())
  for name in (
    'zero_shot.t2v_r1',
    'zero_shot.similarity.v2t_r10',
    'probes.right_caption.matching.all',
    'probes.vtm.hard',
    'probes.order.similarity.all',
    'probes.pseudo.kept',
    'contrast_only.zero_shot.t2v_r1',
    'retrieval.t2v_r1_high',
    'retrieval_zero_shot.t2v_r1',
    'retrieval_scratch.v2t_r5',
    'qa.accuracy_order',
    'qa_frames.accuracy_low',
  ):
    assert name in figures
  for name in ('retrieval', 'qa'):
    card = json.loads((output / 'cards' / name / 'card.json').read_text())
    metric = {'retrieval': 't2v_r1', 'qa': 'accuracy'}[name]
    assert card['metrics'][metric]['value'] == figures[f'{name}.{metric}']
  page = (output / 'report.html').read_text()
  assert 'Four losses against contrast alone' in page
  assert 'data:image/png;base64,' in page and 'figures mean nothing' in page

  # Nothing is trained again, and the figures are the same.
  again = _run('demo', f'--output={output}', '--quick')
  assert again.returncode == 0, again.stderr[-2000:]
  assert again.stdout.count('done before') == 17
  repeated = json.loads((output / 'report.json').read_text())
  made = figures['made']
  assert (made['seed'], made['quick']) == (0, True) and made['code'] and made['versions']['jax']
  same = {k for k in figures if k != 'made' and not k.startswith('seconds.')}
  assert {k: figures[k] for k in same} == {k: repeated[k] for k in same}

  # Other options in the same folder would mix two worlds.
  other = _run('demo', f'--output={output}', '--quick', '--seed=1')
  assert other.returncode == 2 and 'was begun with' in other.stderr

  # One model alone, by the command for any checkpoint.
  alone = _run(
    'evaluate',
    f'--checkpoint={output / "pretrain"}',
    f'--data={output / "data" / "shapes"}',
    '--split=test',
    f'--output={tmp_path / "alone"}',
  )
  assert alone.returncode == 0, alone.stderr[-2000:]
  card = json.loads((tmp_path / 'alone' / 'card.json').read_text())
  found = card['metrics']['t2v_r1']['value']
  assert found == figures['zero_shot.t2v_r1']
