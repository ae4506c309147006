"""A run of launch/main.py that a test can start, kill and start again."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from alpro_jax.train import checkpoints
from tests import launched, patience

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Two seconds of compiling instead of ten, and none at the second start.
_FAST = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'

CONFIG = """
from configs import common


def get_config():
  config = common.get_config('tiny')
  config.task = 'prompter'
  config.model.video.update({
      'image_size': 24, 'width': 16, 'depth': 1, 'mlp_size': 32})
  config.model.text.update({
      'width': 16, 'depth': 2, 'fusion_layer': 1, 'mlp_size': 32})
  config.data.update({
      'sources': (common.source('%(folder)s/set'),),
      'tokenizer': '%(folder)s/tokenizer.model',
      'batch_size': 8, 'image_size': 24, 'resize': 24, 'threads': 2,
  })
  config.eval.update({
      'sources': (common.source('%(folder)s/set'),),
      'batch_size': 8, 'scoring': 'similarity',
  })
  config.train.update({
      'steps': 40, 'log_every_steps': 10, 'checkpoint_every_steps': 1000})
  return config
"""


def make_inputs(folder, clips=16):
  """Writes a set, a tokenizer and a config to a folder."""
  (folder / 'tiny.py').write_text(CONFIG % {'folder': folder})
  world = json.dumps(
    {
      'size': 32,
      'frames': 4,
      'renderings': 1,
      'train': {'move': clips},
      'test_captions': {'move': 2},
    }
  )
  train = folder / 'world' / 'train'
  for name, *flags in (
    ['make_shapes_world', f'--output={folder}/world', f'--options={world}', '--workers=1'],
    [
      'prepare',
      '--source=folder',
      f'--videos={train}/videos',
      f'--captions={train}/captions.jsonl',
      f'--output={folder}/set',
      '--fps=0',
      '--short_side=0',
      '--workers=1',
    ],
    [
      'tokenizer',
      f'--captions={folder}/set',
      '--vocab_size=64',
      f'--output={folder}/tokenizer.model',
    ],
  ):
    assert launched.run(name, *flags) == 0


def environment(folder, devices=1):
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': f'{_FAST} --xla_force_host_platform_device_count={devices}',
  }


def start(folder, *options, config=None, devices=1):
  """Starts launch/main.py; its messages are in `stderr`."""
  config = config or folder / 'tiny.py'
  return subprocess.Popen(
    [sys.executable, ROOT / 'launch' / 'main.py', f'--config={config}', *options],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=environment(folder, devices),
  )


def finish(process):
  """Waits for the end; returns the exit code and the messages."""
  _, messages = process.communicate(timeout=patience.seconds(300))
  return process.returncode, messages


def wait_for(process, words):
  """Reads messages until one holds these words."""
  seen = []
  for line in process.stderr:
    seen.append(line)
    if words in line:
      return
  raise AssertionError(f'ended with {process.wait()} before {words!r}:\n' + ''.join(seen[-30:]))


def stored_state(workdir):
  """Returns the step of the newest checkpoint and every array that is in it."""
  folder = checkpoints.find(workdir).folder
  # As numpy arrays: the devices that wrote them need not be here.
  host = ocp.RestoreArgs(restore_type=np.ndarray)
  found = {}
  with ocp.PyTreeCheckpointer() as reader:
    for item in ('params', 'train'):
      tree = reader.metadata(folder / item).item_metadata.tree
      found[item] = reader.restore(folder / item, restore_args=jax.tree.map(lambda _: host, tree))
  return int(folder.name), found


def assert_same_end(first, second):
  """Two runs reached the same step with the same parameters and moments."""
  (step, want), (other, got) = stored_state(first), stored_state(second)
  assert step == other
  jax.tree.map(np.testing.assert_array_equal, want, got)
