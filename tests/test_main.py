"""Mistakes end launch/main.py with one clear line and exit code 2."""

import pytest

from tests import tiny_run

DEMO = 'configs/pretrain.py:demo'
MISTAKES = {
  'typo': (
    DEMO,
    ['--workdir=W', '--config.train.step=3'],
    1,
    'unknown option --config.train.step=3; did you mean --config.train.steps?',
  ),
  'unknown': (
    DEMO,
    ['--workdir=W', '--config.train.zzz=3'],
    1,
    'unknown option --config.train.zzz=3; all options are in',
  ),
  'guess': (
    DEMO,
    ['--workdir=W', '--config.optimizer.lr=3'],
    1,
    'unknown option --config.optimizer.lr=3; did you mean --config.optimizer.learning_rate?',
  ),
  'renamed': (
    DEMO,
    ['--workdir=W', '--config.eval.rerank=False'],
    1,
    "--config.eval.rerank=False is now called --config.eval.scoring; True is now 'auto'",
  ),
  'type': (
    DEMO,
    ['--workdir=W', '--config.train.steps=x'],
    1,
    'flag --config.train.steps=x: invalid literal',
  ),
  'flag': (DEMO, ['--wrkdir=W'], 1, "Unknown command line flag 'wrkdir'"),
  'no workdir': (DEMO, [], 1, '--config and --workdir are needed'),
  'no config': ('configs/none.py', ['--workdir=W'], 1, 'config file configs/none.py is not there'),
  'scale': ('configs/pretrain.py:huge', ['--workdir=W'], 1, "unknown scale='huge'"),
  'half distributed': (
    DEMO,
    ['--workdir=W', '--num_processes=2'],
    1,
    '--coordinator_address, --num_processes and --process_id go together',
  ),
  'memory': (
    DEMO,
    ['--workdir=W', '--config.machine.memory_gib=1'],
    1,
    'this run needs about 2.3 GiB (0.01 of parameters',
  ),
  'nothing fits': (
    'configs/pretrain.py:own',
    ['--workdir=W', '--config.data.path=', '--config.machine.memory_gib=1'],
    1,
    'nothing fits cpu, 1.0 GiB (config.machine.memory_gib): the smallest choice needs about',
  ),
  'no set': (
    'configs/finetune_retrieval.py:tiny_own',
    ['--workdir=W', '--config.data.path=none'],
    1,
    'none has no manifest.json, so it is not a prepared set; make a set with: python '
    'launch/prepare.py --source=folder',
  ),
  'devices': (
    DEMO,
    ['--workdir=W', '--config.data.batch_size=12', '--config.machine.memory_gib=8'],
    8,
    'a global batch of 12 cannot be sharded over 8 shards',
  ),
  'no data': (
    DEMO,
    ['--workdir=W', '--config.data.tokenizer=none.model', '--config.machine.memory_gib=8'],
    1,
    'launch/tokenizer.py',
  ),
}


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
  """{name: (exit code, messages)} of all mistakes, a few at a time."""
  folder = tmp_path_factory.mktemp('mistakes')
  results, names = {}, list(MISTAKES)
  for first in range(0, len(names), 3):
    started = {}
    for name in names[first : first + 3]:
      config, options, devices, _ = MISTAKES[name]
      options = [o.replace('=W', f'={folder / "run"} {name}') for o in options]
      started[name] = tiny_run.start(folder, *options, config=config, devices=devices)
    results |= {n: tiny_run.finish(p) for n, p in started.items()}
  return results


@pytest.mark.slow
@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_one_line(ended, name):
  code, messages = ended[name]
  last = messages.strip().splitlines()[-1]
  assert code == 2, messages
  assert last.startswith('error: ') and MISTAKES[name][-1] in last
  assert 'Traceback' not in messages
