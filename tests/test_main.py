"""Mistakes end launch/main.py with one clear line and exit code 2."""

import jax
import pytest
from absl import logging

from alpro_jax.evaluation import split
from alpro_jax.train import loop
from configs import common
from launch import settle
from tests import launched, tiny_run

DEMO = 'configs/pretrain.py:demo'
MISTAKES = {
  'typo': (
    DEMO,
    ['--workdir=W', '--config.train.step=3'],
    'unknown option --config.train.step=3; did you mean --config.train.steps?',
  ),
  'unknown': (
    DEMO,
    ['--workdir=W', '--config.train.zzz=3'],
    'unknown option --config.train.zzz=3; all options are in',
  ),
  'guess': (
    DEMO,
    ['--workdir=W', '--config.optimizer.lr=3'],
    'unknown option --config.optimizer.lr=3; did you mean --config.optimizer.learning_rate?',
  ),
  'renamed': (
    DEMO,
    ['--workdir=W', '--config.eval.rerank=False'],
    "--config.eval.rerank=False is now called --config.eval.scoring; True is now 'auto'",
  ),
  'type': (
    DEMO,
    ['--workdir=W', '--config.train.steps=x'],
    'flag --config.train.steps=x: invalid literal',
  ),
  'flag': (DEMO, ['--wrkdir=W'], "Unknown command line flag 'wrkdir'"),
  'no workdir': (DEMO, [], '--config and --workdir are needed'),
  'no config': ('configs/none.py', ['--workdir=W'], 'config file configs/none.py is not there'),
  'scale': ('configs/pretrain.py:huge', ['--workdir=W'], "unknown scale='huge'"),
  'half distributed': (
    DEMO,
    ['--workdir=W', '--num_processes=2'],
    '--coordinator_address, --num_processes and --process_id go together',
  ),
  'memory': (
    DEMO,
    ['--workdir=W', '--config.machine.memory_gib=1'],
    'this run needs about 2.3 GiB (0.01 of parameters',
  ),
  'nothing fits': (
    'configs/pretrain.py:own',
    ['--workdir=W', '--config.data.path=', '--config.machine.memory_gib=1'],
    'nothing fits cpu, 1.0 GiB (config.machine.memory_gib): the smallest choice needs about',
  ),
  'no set': (
    'configs/finetune_retrieval.py:tiny_own',
    ['--workdir=W', '--config.data.path=none'],
    'none has no manifest.json, so it is not a prepared set; make a set with: python '
    'launch/prepare.py --source=folder',
  ),
  'devices': (
    DEMO,
    [
      '--workdir=W',
      '--config.data.batch_size=12',
      '--config.data.tokenizer=none.model',
      '--config.machine.memory_gib=8',
    ],
    'a global batch of 12 cannot be sharded over 8 shards',
  ),
  'no demo': (
    DEMO,
    ['--workdir=W', '--config.machine.memory_gib=8'],
    'tokenizer.model is not there: this config is about the clips of the demo, which make demo',
  ),
  'a set without a path': (
    DEMO,
    ['--workdir=W', "--config.eval.sources=({'split': 'test'},)"],
    "--config.eval.sources=({'split': 'test'},): each set is a dict with a path",
  ),
  'own sets': (
    'configs/finetune_retrieval.py:tiny_own',
    ['--workdir=W', '--config.machine.memory_gib=8', "--config.data.sources=({'path': 'sets/a'},)"],
    "No tokenizer at '.'; pass --config.data.tokenizer=FILE",
  ),
  'own sets and a path': (
    'configs/finetune_retrieval.py:tiny_own',
    ['--workdir=W', '--config.data.path=a', "--config.data.sources=({'path': 'sets/a'},)"],
    '--config.data.path=a and --config.data.sources both say what is trained on; give one of them',
  ),
  'a set by its path': (
    DEMO,
    [
      '--workdir=W',
      '--config.machine.memory_gib=8',
      "--config.eval.sources=({'path': 'sets/a'},)",
      '--config.data.tokenizer=none.model',
    ],
    "No tokenizer at 'none.model'",
  ),
  'no data': (
    DEMO,
    ['--workdir=W', '--config.data.tokenizer=none.model', '--config.machine.memory_gib=8'],
    'launch/tokenizer.py',
  ),
}
# What depends on the devices, and one that does not.
OWN_PROCESS = {'memory', 'typo'}


def check(name, code, messages):
  last = messages.strip().splitlines()[-1]
  assert code == 2, messages
  assert last.startswith('error: ') and MISTAKES[name][-1] in last
  assert 'Traceback' not in messages


# Whatever is said before a device is asked for is said in this process too, in a tenth
# of the time.
@pytest.mark.parametrize('name', sorted({*MISTAKES} - OWN_PROCESS))
def test_a_mistake_is_one_line(name, tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(launched.ROOT)
  config, options, _ = MISTAKES[name]
  options = [o.replace('=W', f'={tmp_path / "run"}') for o in options]
  check(name, launched.run('main', f'--config={config}', *options), capfd.readouterr().err)


@pytest.mark.slow
def test_a_mistake_is_one_line_of_a_process(tmp_path):
  started = {}
  for name in sorted(OWN_PROCESS):
    config, options, _ = MISTAKES[name]
    options = [o.replace('=W', f'={tmp_path / "run"} {name}') for o in options]
    started[name] = tiny_run.start(tmp_path, *options, config=config)
  for name, process in started.items():
    check(name, *tiny_run.finish(process))


@pytest.mark.parametrize('process', [0, 1])
def test_the_end_of_a_run_needs_no_report(tmp_path, monkeypatch, process):
  """Process 0 alone writes it, and may do so after the others are at the end."""
  monkeypatch.chdir(launched.ROOT)
  ended = loop.Outcome(9, True, {'eval/t2v_r1': 40.0, 'eval/t2v_r10': 90.0}, 3)
  summarised, said = [], []

  def settled(config, *_, **__):
    config = config.copy_and_resolve_references()
    config.eval.sources = (common.source('sets/a', split='val'),)
    config.data.tokenizer = 'words.model'
    return settle.Settled(config, [], 'sets/clips', 20, 0, '')

  monkeypatch.setattr(settle, 'settle', settled)
  monkeypatch.setattr(loop, 'train', lambda *_, **__: ended)
  monkeypatch.setattr(split, 'summarise_run', lambda *told: summarised.append(told[2:]))
  monkeypatch.setattr(jax, 'process_index', lambda: process)
  monkeypatch.setattr(logging, 'info', lambda text, *given: said.append(text % given))
  run = f'--workdir={tmp_path}/run', '--config.data.path=sets/a'
  assert launched.run('main', f'--config={DEMO}', *run) == 0
  wanted = 'held out: of 20 videos that it did not train on, a text finds its video first in 40.0 %'
  assert any(text.startswith(wanted) for text in said) == (process == 0)
  assert summarised == [(9, 3)]
