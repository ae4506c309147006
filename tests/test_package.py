"""pyproject.toml admits what CI installs, and names all of it."""

import pathlib
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
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
