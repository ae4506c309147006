"""The study: its plan holds together, its table is paired, and every stage runs."""

import dataclasses
import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from examples.study import measure, plan, runs, table
from tests import launched


@pytest.mark.parametrize(
  'world, row',
  [(name, row) for name, world in plan.WORLDS.items() for row in world.rows or plan.ROWS],
)
def test_rows_differ_in_what_they_say_alone(world, row):
  """Equal numbers of clips in all, and a config for every stage."""
  told = plan.ROWS[row]
  made = {
    stage: runs.get_config(f'{world},{row},{stage}')
    for stage in ('prompter', 'pretrain', 'retrieval', 'questions_10')
  }
  clips = {x: made[x].train.steps * made[x].data.batch_size for x in ('prompter', 'pretrain')}
  assert clips['pretrain'] + clips['prompter'] * (told.start == 'prompter') == 1500 * (64 + 32)
  batches = {made[stage].data.batch_size for stage in ('pretrain', 'retrieval', 'questions_10')}
  negatives = {config.loss.uniform_negative_steps >= 10**5 for config in made.values()}
  assert batches == {plan.BATCH} and negatives == {True}
  if plan.WORLDS[world].order_steps:
    order = runs.get_config(f'{world},{row},questions_order')
    assert order.data.sources[0].style == 'order' and order.train.steps == 1200
  assert told.teaches == (told.pretrain is not None and made['pretrain'].loss.pem > 0)
  sizes = {made[x].model.video.width for x in made} | {made[x].model.text.depth * 16 for x in made}
  assert sizes == {128 if told.twice else 64}
  if told.start == 'random':  # No contrast comes in by a start.
    assert made['pretrain'].loss.vtc == 0
  assert plan.BESIDE.get(row, 'alpro') in plan.ROWS


def test_main_rows_have_five_seeds_and_no_unknown_run_has_a_config():
  assert [row for row, told in plan.ROWS.items() if len(told.seeds) == 5] == [
    'alpro',
    'without_pem',
    'without_vtc',
    'mlm_vtm',
  ]
  assert [len(plan.seeds(world, 'alpro')) for world in plan.WORLDS] == [5, 3]
  for argument in ('babyai,alpro', 'mars,alpro,pretrain', 'babyai,beta,pretrain', 'a,b,c,d'):
    with pytest.raises(ValueError, match='is no WORLD,ROW,STAGE'):
      runs.get_config(argument)


def test_a_plan_is_known_by_what_a_row_depends_on(monkeypatch):
  before = plan.digest('metaworld', 'alpro')
  place = plan.WORLDS['metaworld']
  for change, same in (({'rows': ()}, True), ({'seeds': 1}, True), ({'splits': ('test',)}, False)):
    monkeypatch.setitem(plan.WORLDS, 'metaworld', dataclasses.replace(place, **change))
    assert (plan.digest('metaworld', 'alpro') == before) == same


def test_a_region_shows_what_lies_in_it_for_half_of_the_frames():
  region = np.zeros((1, 4, 4), bool)
  region[0, 1, 2:] = True
  inside, outside, beyond = ('a', 0.6, 0.3), ('a', 0.4, 0.3), ('b', 1.2, 0.3)
  assert measure._in_region([[inside, beyond], [outside, beyond]], region) == ['a']
  assert measure._in_region([[inside], [outside], [outside]], region) == []
  # One that moves: of four frames the first and the third are looked at.
  moving = np.concatenate([region, ~region])
  assert measure._in_region([[inside], [], [outside], []], moving) == ['a']
  assert measure._in_region([[outside], [], [inside], []], moving) == []


def test_differences_are_paired_by_seed(tmp_path):
  """Rows that differ by 2 in every seed, however far seeds are apart."""
  digest = functools.partial(plan.digest, 'babyai')
  (tmp_path / 'babyai').mkdir()
  for row, more in (('alpro', 0.0), ('without_pem', 2.0), ('without_vtc', -9.0)):
    for seed, base in enumerate((10.0, 50.0, 90.0)):
      figure = base + more + (seed - 1 if row == 'without_pem' else 0)
      content = {
        'row': row,
        'plan': digest(row),
        'made': {'seed': seed},
        'figures': {'retrieval.t2v_r1': figure},
      }
      if row != 'without_vtc' or seed == 0:
        (tmp_path / 'babyai' / f'{row}_seed{seed}.json').write_text(json.dumps(content))
  found = table.read(tmp_path, 'babyai', digest)
  differ = table.differences(found)
  assert ('alpro', 'retrieval.t2v_r1') not in differ
  told = differ['without_pem', 'retrieval.t2v_r1']
  # Student's t of two degrees of freedom: 4.303.
  assert told.mean == pytest.approx(2) and told.half == pytest.approx(4.3027 / math.sqrt(3), 1e-4)
  assert not told.clear
  page = table.write(found, 'babyai')
  assert '| 50.0 | 52.0<br>+2.0 (-0.5 to +4.5) | 1.0<br>-9.0 (one seed) |' in page
  with pytest.raises(ValueError, match='was made by another plan'):
    table.read(tmp_path, 'babyai', lambda row: 'another')


def test_what_is_quick_stays_out_of_the_documentation(tmp_path):
  """By default, if somebody says docs/, and if its figures lie among others."""

  def end(*flags):
    command = [sys.executable, '-m', 'examples.study', '--page_only', *flags]
    done = subprocess.run(command, cwd=launched.ROOT, capture_output=True, text=True)
    return done.returncode, done.stderr

  page, results = tmp_path / 'study.md', tmp_path / 'results' / 'study' / 'babyai'
  results.mkdir(parents=True)
  made = {'row': 'alpro', 'plan': plan.digest('babyai', 'alpro'), 'figures': {}}
  (results / 'alpro_seed0.json').write_text(json.dumps(made | {'made': {'seed': 0, 'quick': True}}))
  assert end('--quick', f'--output={tmp_path}') == (0, '')
  assert 'the figures mean nothing' in page.read_text()
  page.unlink()
  code, said = end(f'--results={results.parent}', f'--page={page}')
  assert code == 2 and 'alpro_seed0.json was made with --quick: its figures mean' in said
  code, said = end('--quick', f'--page={page}', '--results=docs/results/study')
  assert code == 2 and 'error: --results=docs/results/study is in docs/, and what' in said
  assert said.count('\n') == 1 and not page.exists()


@pytest.mark.reliability
@pytest.mark.parametrize('world, package', [('babyai', 'minigrid'), ('metaworld', 'metaworld')])
def test_a_row_from_clips_to_the_page(tmp_path, world, package):
  pytest.importorskip(package)
  command = [
    *(sys.executable, '-m', 'examples.study', '--quick', '--seeds=0'),
    f'--world={world}',
    f'--output={tmp_path / "study"}',
    f'--results={tmp_path / "results"}',
    f'--page={tmp_path / "study.md"}',
  ]
  for more in ('--rows=alpro', '--labels'):
    subprocess.run([*command, more], cwd=launched.ROOT, check=True, timeout=1800)
  made = json.loads((tmp_path / 'results' / world / 'alpro_seed0.json').read_text())
  wanted = {name for name in plan.METRICS if not name.startswith('labels.')}
  missing = wanted - set(made['figures']) - {'pseudo.right'}  # None may be kept.
  of_the_other = {'babyai': ('.camera.', '_order.'), 'metaworld': ('_count', '_colour')}[world]
  assert not [name for name in missing if not any(part in name for part in of_the_other)]
  page = (tmp_path / 'study.md').read_text()
  assert '| text to video, R@1, zero-shot |' in page
  labelled = {path.name for path in (tmp_path / 'results' / world / 'labels').iterdir()}
  assert labelled == {f'{row}_seed0.json' for row in plan.labelled(world)}
  assert f'## {world}: labels of regions' in page
