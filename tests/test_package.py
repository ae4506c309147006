"""pyproject.toml admits what CI installs, and names all of it."""

import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name as canonical

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
ENVIRONMENTS = [
  {**default_environment(), 'python_version': version, 'sys_platform': platform}
  for version in ('3.11', '3.12', '3.13')
  for platform in ('linux', 'darwin')
]
IDS = [f'{one["python_version"]}-{one["sys_platform"]}' for one in ENVIRONMENTS]


def ranges(*extras):
  """Yields the requirements of the project, with those of some extras."""
  for line in [*PROJECT['dependencies'], *(line for extra in extras for line in EXTRAS[extra])]:
    need = Requirement(line)
    if need.name == PROJECT['name']:
      yield from ranges(*need.extras)
    else:
      yield need


def pinned(file):
  """Returns the requirements of a file, options left out."""
  lines = (ROOT / file).read_text().splitlines()
  return [Requirement(line) for line in lines if line and not line.startswith(('#', '-'))]


def apply(needs, environment):
  """Returns {name: specifiers} of what holds in an environment."""
  found = {}
  for need in needs:
    if need.marker is None or need.marker.evaluate(environment):
      found.setdefault(canonical(need.name), []).append(need.specifier)
  return found


def admits(found, name, pin):
  version = str(pin).removeprefix('==')
  return all(one.contains(version, prereleases=True) for one in found[name])


@pytest.mark.parametrize('environment', ENVIRONMENTS, ids=IDS)
def test_requirements_pin_what_the_project_names(environment):
  wide = apply(ranges('test'), environment)
  exact = apply(pinned('requirements.txt'), environment)
  assert wide.keys() == exact.keys()
  for name, (pin,) in exact.items():
    assert admits(wide, name, pin), f'{name}{pin} is outside {wide[name]}'


@pytest.mark.parametrize(
  'file, extra',
  [
    ('requirements-beam.txt', 'beam'),
    ('requirements-torch.txt', 'torch'),
    ('requirements-tpu.txt', 'tpu'),
    ('requirements-docs.txt', 'docs'),
  ],
)
@pytest.mark.parametrize('environment', ENVIRONMENTS[::2], ids=IDS[::2])
def test_optional_requirements_fit_too(file, extra, environment):
  wide = apply(ranges('test', extra), environment)
  exact = apply(pinned(file), environment)
  named = {canonical(Requirement(line).name) for line in EXTRAS[extra]}
  assert named <= exact.keys()
  for name, pins in exact.items():
    if name in wide:
      assert admits(wide, name, pins[0]), f'{name}{pins} is outside'


def test_requirements_install_the_project_itself():
  assert '-e .' in (ROOT / 'requirements.txt').read_text().splitlines()


def _make(tmp_path, version, *options):
  """What make says with a python3 of a version; nothing is installed."""
  # It answers questions about its version and fails at all else.
  (tmp_path / 'python3').write_text(
    f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"
echo "$@"; exit 7
"""
  )
  (tmp_path / 'python3').chmod(0o755)
  for name in ('sh', 'test', 'echo', 'touch'):
    if not (tmp_path / name).exists():
      (tmp_path / name).symlink_to(shutil.which(name))
  done = subprocess.run(
    [shutil.which('make'), 'install', f'VENV={tmp_path / "venv"}', *options],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={'PATH': str(tmp_path)},
  )
  return done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_takes_the_versions_of_python_that_the_project_does(tmp_path):
  admitted = SpecifierSet(PROJECT['requires-python'])
  for minor in range(9, 17):
    said = _make(tmp_path, (3, minor, 1))
    assert ('-m venv' in said) == (f'3.{minor}.1' in admitted), said
    assert ('error: no Python 3.11 to 3.13 was found' in said) == ('-m venv' not in said)
  named = f'PYTHON={tmp_path / "python3"}'
  said = _make(tmp_path, (3, 14, 0), named)
  assert 'python3 is not Python 3.11 to 3.13' in said and '-m venv' not in said
  assert '-m venv' in _make(tmp_path, (3, 13, 9), named)
