"""The recipes for clusters are valid for their tools, and start launch/main.py.

Checks by the tools themselves are skipped where these are not installed; `make
test-launch` installs them.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))


def tool(name):
  """Returns the path of a tool beside this Python or of the machine, or skips the test."""
  beside = shutil.which(name, path=str(pathlib.Path(sys.executable).parent))
  found = beside or shutil.which(name)
  return found or pytest.skip(f'{name} is not installed: requirements-launch.txt')


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_explain_themselves(path):
  subprocess.run(['bash', '-n', path], check=True)
  done = subprocess.run([path], capture_output=True, text=True)
  assert done.returncode == 2
  assert f'launch/{path.name}' in done.stderr


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
  subprocess.run([tool('shellcheck'), path], check=True)


@pytest.mark.parametrize('name', ['Dockerfile', 'beam.Dockerfile'])
def test_hadolint_finds_nothing_in_the_container_files(name):
  subprocess.run([tool('hadolint'), LAUNCH / name], check=True)


@pytest.mark.parametrize('name', ['Dockerfile', 'beam.Dockerfile'])
def test_container_files_install_the_project_once_its_code_is_there(name, tmp_path):
  """Their steps, with a pip that takes a requirement of `.` where pyproject.toml lies alone."""
  place, fake, told = tmp_path / 'image', tmp_path / 'bin', tmp_path / 'told'
  place.mkdir()
  fake.mkdir()
  pip = fake / 'pip'
  pip.write_text(
    """#!/bin/sh
set -e
asked="$*"
while [ $# -gt 0 ]; do
  if [ "$1" = -r ]; then asked="$asked $(grep -v '^#' "$2" | tr '\\n' ' ')"; fi
  shift
done
echo "$asked" >> "$TOLD"
case " $asked " in *" . "*) test -f pyproject.toml;; esac
"""
  )
  pip.chmod(0o755)
  steps = (LAUNCH / name).read_text().replace('\\\n', '').splitlines()
  environment = {**os.environ, 'PATH': f'{fake}:{os.environ["PATH"]}', 'TOLD': f'{told}'}
  for step in steps:
    kind, _, words = step.partition(' ')
    if kind == 'COPY':
      *sources, _ = words.split()
      for path in ROOT.iterdir() if sources == ['.'] else map(ROOT.joinpath, sources):
        if path.is_file():
          shutil.copy(path, place)
    elif kind == 'RUN':
      subprocess.run(['sh', '-c', words], cwd=place, check=True, env={**environment, 'JAX': 'tpu'})
  asked = told.read_text().splitlines()
  assert [' . ' in f'{one} ' for one in asked] == [False] * (len(asked) - 1) + [True]
  assert 'jax==' in asked[0] and '--no-deps' in asked[-1]


def run_with(folder, name, script, *arguments, text='printf "%s\\n" "$@"', **variables):
  """Runs a script with a command of ours; without `text` it prints what it was given."""
  fake = folder / name
  fake.write_text(f'#!/bin/sh\n{text}\n')
  fake.chmod(0o755)
  path = f'{folder}:{os.environ["PATH"]}'
  return subprocess.run(
    [LAUNCH / script, *arguments],
    text=True,
    capture_output=True,
    env={**os.environ, **variables, 'PATH': path},
  )


def test_slurm_starts_main_on_every_task(tmp_path):
  told = run_with(tmp_path, 'srun', 'slurm_gpu.sh', '--workdir=a b').stdout
  assert told.endswith('.venv/bin/python\nlaunch/main.py\n--distributed\n--workdir=a b\n')
  told = run_with(
    tmp_path, 'srun', 'slurm_gpu.sh', '--workdir=a b', IMAGE='host#image', MOUNTS='/a:/b'
  ).stdout
  assert '--container-image=host#image' in told.splitlines()
  assert '--container-mounts=/a:/b\npython\nlaunch/main.py\n--distributed\n' in told


def test_a_pod_starts_main_on_every_host(tmp_path):
  told = run_with(tmp_path, 'gcloud', 'tpu_pod.sh', 'train', 'name', 'zone', '--workdir=a b').stdout
  assert '--worker=all' in told.splitlines()
  assert 'launch/main.py --distributed' in told
  assert '--workdir=a\\ b' in told


def test_xpk_gets_slices_image_and_command(tmp_path):
  arguments = 'run', 'cluster', 'zone', 'v5litepod-256', '--workdir=a b'
  told = run_with(tmp_path, 'xpk', 'xpk.sh', *arguments, IMAGE='image', SLICES='2').stdout
  lines = told.splitlines()
  assert lines[:2] == ['workload', 'create']
  assert {'--tpu-type=v5litepod-256', '--num-slices=2', '--docker-image=image'} <= set(lines)
  assert 'launch/main.py --distributed --workdir=a\\ b' in told


# A slice that is taken during the first training, and one that is not; `fails` trainings fail
# on a slice that stays.
GCLOUD = """
log() { echo "$@" >> "$FOLDER/log"; }
case "$*" in
  *describe*) cat "$FOLDER/state" 2> /dev/null ;;
  *create*) log create; echo "$*" > "$FOLDER/create"; echo ACTIVE > "$FOLDER/state" ;;
  *delete*) log delete; rm "$FOLDER/state" ;;
  *ssh*)
    log train; echo "$*" > "$FOLDER/train"
    [ "$FAILS" = always ] && exit 1
    [ -e "$FOLDER/taken" ] && exit 0
    touch "$FOLDER/taken"; echo SUSPENDED > "$FOLDER/state"; exit 1 ;;
esac
"""


@pytest.mark.parametrize('fails', ['once', 'always'])
def test_a_spot_slice_that_is_taken_is_asked_for_again(tmp_path, fails):
  done = run_with(
    tmp_path,
    'gcloud',
    'tpu_spot.sh',
    *('name', 'zone', 'v5litepod-64', 'software', '--workdir=gs://b/a b'),
    text=GCLOUD,
    FOLDER=str(tmp_path),
    FAILS=fails,
    IMAGE='host/image',
    SERVICE_ACCOUNT='me',
    POLL_SECONDS='0',
  )
  log = (tmp_path / 'log').read_text().split()
  if fails == 'always':
    assert log == ['create', *['train'] * 3]
    assert done.returncode == 1 and 'the slice name is still there' in done.stderr
    return
  assert done.returncode == 0, done.stderr
  assert log == ['create', 'train', 'delete', 'create', 'train', 'delete']
  assert '--spot' in (tmp_path / 'create').read_text().split()
  trained = ' '.join((tmp_path / 'train').read_text().split())
  assert 'host/image python launch/main.py --distributed --workdir=gs://b/a\\ b' in trained


def jobset():
  return yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())


def test_the_jobset_starts_main_on_every_host_of_a_slice():
  (slice_,) = jobset()['spec']['replicatedJobs']
  spec = slice_['template']['spec']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  assert container['command'] == ['python', 'launch/main.py', '--distributed']
  rows, columns = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  hosts = int(rows) * int(columns) // container['resources']['limits']['google.com/tpu']
  assert spec['parallelism'] == spec['completions'] == hosts


def test_the_jobset_fits_its_schema():
  api = pytest.importorskip('kubeflow_trainer_api.models', reason='requirements-launch.txt')
  given = jobset()
  # A field that the schema does not know is lost on the way.
  assert api.JobsetV1alpha2JobSet.from_dict(given).to_dict() == given


def test_the_task_for_skypilot_fits_its_schema():
  sky = pytest.importorskip('sky', reason='requirements-launch.txt')
  task = sky.Task.from_yaml(str(LAUNCH / 'skypilot.yaml'))
  assert task.num_nodes == 2
  (resources,) = task.resources
  assert resources.use_spot and resources.accelerators == {'H100': 8}
  subprocess.run(['bash', '-n', '-c', task.run], check=True)
  assert 'python launch/main.py' in task.run
