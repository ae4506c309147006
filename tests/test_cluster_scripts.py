"""The scripts for clusters are well-formed and start launch/main.py."""

import os
import subprocess

import pytest
import yaml

from tests.tiny_run import ROOT

SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_explain_themselves(path):
  subprocess.run(['bash', '-n', path], check=True)
  done = subprocess.run([path], capture_output=True, text=True)
  assert done.returncode == 2
  assert f'launch/{path.name}' in done.stderr


def run_with(folder, name, script, *arguments):
  """Runs a script with a command that only prints what it was given."""
  fake = folder / name
  fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  fake.chmod(0o755)
  return subprocess.run(
    [ROOT / 'launch' / script, *arguments],
    check=True,
    text=True,
    capture_output=True,
    env={**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}'},
  ).stdout


def test_slurm_starts_main_on_every_task(tmp_path):
  told = run_with(tmp_path, 'srun', 'slurm_gpu.sh', '--workdir=a b')
  assert told.endswith('launch/main.py\n--distributed\n--workdir=a b\n')


def test_a_pod_starts_main_on_every_host(tmp_path):
  told = run_with(tmp_path, 'gcloud', 'tpu_pod.sh', 'train', 'name', 'zone', '--workdir=a b')
  assert '--worker=all' in told.splitlines()
  assert 'launch/main.py --distributed' in told
  assert '--workdir=a\\ b' in told


def test_the_jobset_starts_main_on_every_host_of_a_slice():
  job = yaml.safe_load((ROOT / 'launch' / 'gke_jobset.yaml').read_text())
  (slice_,) = job['spec']['replicatedJobs']
  spec = slice_['template']['spec']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  assert container['command'] == ['python', 'launch/main.py', '--distributed']
  rows, columns = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  hosts = int(rows) * int(columns) // container['resources']['limits']['google.com/tpu']
  assert spec['parallelism'] == spec['completions'] == hosts
