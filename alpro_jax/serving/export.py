"""Writes a trained model as a folder that runs without this package.

  manifest.json          all that a program or a person must know
  programs/*.jax_export  StableHLO by jax.export, any batch size
  params.npz             parameters, once; programs take them as arguments
  tokenizer.model        or vocab.txt; tower.json of a text tower
  alpro_loader.py        reads all of this; see there for how to use it
  requirements.txt       the packages that it needs
  saved_model/           on request: the same for TensorFlow

Every program is run from that folder, by that loader, and compared with the live model before the
folder gets its name.
"""

import dataclasses
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np

from alpro_jax import files
from alpro_jax.data import tokens
from alpro_jax.evaluation import familiarity
from alpro_jax.evaluation.trained import TrainedModel, find_tokenizer
from alpro_jax.serving import alpro_loader, check, programs, saved_model
from alpro_jax.train import checkpoints, digests, identity

_PARAMETERS = 'params.npz'
# The loader chooses evenly; the other rules need TensorFlow's random numbers.
_EVEN = ('uniform', 'nlvl_uniform')


def write(
  trained: TrainedModel,
  output,
  *,
  platforms: Sequence[str] = programs.PLATFORMS,
  with_saved_model: bool = False,
  tolerance: float | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Exports a model and checks what was written.

  Args:
    trained: the model, on one device; its config.data says what it is shown.
    output: folder to make.
    platforms: that the programs run on.
    with_saved_model: also write a TensorFlow SavedModel.
    tolerance: None is check.default_tolerance.
    say: gets a line about each thing that was done.
  Returns:
    the manifest.
  Raises:
    ValueError: if a parameter is not finite, or a program gives other numbers than the live
      model; nothing is left then.
    FileExistsError: if the folder is there and not empty.
  """
  _check(trained)
  trained = _useful(trained)
  with files.folder(output) as draft:
    made = programs.make(trained, platforms)
    params = _used(made, trained)
    manifest = _write_parts(trained, made, params, draft)
    for name, described in manifest['programs'].items():
      count = sum(params[n].size for n in described['parameters'])
      say(f'{name}: {manifest["files"][described["file"]]["bytes"]:,} bytes, {count:,} parameters')
    if not programs.of_pairs(trained):
      say(f'both encoders alone, to compare by similarity: {trained.why_no_matching}')
    expected = check.live(trained)
    found = check.differences(trained, alpro_loader.load(draft).call, expected)
    if with_saved_model:
      folder = draft / 'saved_model'
      saved_model.write(made, params, folder)
      there = check.differences(trained, saved_model.load(folder), expected)
      found |= {f'saved_model/{name}': x for name, x in there.items()}
    if tolerance is None:
      tolerance = check.default_tolerance(trained)
    for name, difference in found.items():
      say(f'{name}: differs from the live model by {difference:.1e} at most')
    if wrong := [n for n, x in found.items() if not x <= tolerance]:
      raise ValueError(
        f'{", ".join(wrong)} differ from the live model by more than the {tolerance:.1e} that is '
        'allowed; nothing was written. If this machine multiplies float32 coarsely, pass '
        '--tolerance.'
      )
    manifest['check'] = {
      'platform': jax.default_backend(),
      'tolerance': tolerance,
      'batch_sizes': list(check.BATCH_SIZES),
      'difference': found,
    }
    _write_manifest(draft, manifest)
  return manifest


def write_params(checkpoint, output, *, tokenizer: str = '') -> None:
  """Copies a checkpoint, without the optimizer: another one that trained.load takes.

  Args:
    checkpoint: what checkpoints.find takes.
    output: folder to make.
    tokenizer: its file, for a checkpoint of an earlier version, if it has moved.
  """
  found = checkpoints.find(checkpoint)
  if not (found.folder / 'params').is_dir():
    raise ValueError(f'{found.folder} has no optimizer to leave out; copy it as it is.')
  words = identity.words(found.meta, find_tokenizer(found, tokenizer))
  with files.folder(output) as draft:
    try:
      for name in ('params', 'meta'):
        shutil.copytree(found.folder / name, draft / name)
    except shutil.Error as error:  # It lists all files of a full disk.
      _, _, reason = error.args[0][0]
      raise OSError(reason) from error
    checkpoints.write_words(draft, words)
    if known := familiarity.load(found.folder):
      known.save(draft)
    digests.write(draft)
    before, after = (json.loads((x / digests.FILE).read_text()) for x in (found.folder, draft))
    for name, digest in before.items():
      if name.startswith(('params/', 'meta/')) and after.get(name) != digest:
        raise OSError(f'{name} of {found.folder} was not copied as it is; try again.')


def _check(trained):
  sampling = trained.config.data.eval_sampling
  if sampling not in _EVEN:
    raise ValueError(
      f'the run is evaluated with data.eval_sampling={sampling!r}, but an export can only choose '
      f'frames by one of {_EVEN}; pass --uniform to choose them so.'
    )
  params = programs.flatten(trained.params)
  if broken := [name for name, x in params.items() if not np.isfinite(x).all()]:
    raise ValueError(
      f'{len(broken)} parameters hold NaN or infinity: {", ".join(broken)}. A model with them '
      'computes nothing; export an earlier step.'
    )


def _useful(trained):
  """Leaves out the BERT that a text tower has beside it, where nobody trained it to fuse."""
  config = trained.model.config
  if not config.text_tower or not config.text or programs.of_pairs(trained):
    return trained
  model = dataclasses.replace(trained.model, config=dataclasses.replace(config, text=None))
  parts = ('video_encoder', 'video_projection', 'text_tower', 'text_projection', *programs.SCALARS)
  options = trained.config.copy_and_resolve_references()
  options.data.max_text_tokens = options.data.max_tower_tokens
  return trained._replace(
    model=model,
    params={name: x for name, x in trained.params.items() if name in parts},
    config=options,
    tokenizer=trained.tokenizer.tower,
  )


def _used(made, trained):
  """{name: numpy array} of the parameters that programs take."""
  params = programs.flatten(trained.params)
  names = {n for item in made.items() for n in programs.signature(*item).parameters}
  return {name: np.asarray(params[name]) for name in sorted(names)}


def _write_parts(trained, made, params, folder):
  """Writes everything but the SavedModel; returns the manifest."""
  needs = [f'jax>={jax.__version__}', *alpro_loader.NEEDS[1:]]
  for one in tokens.parts(trained.tokenizer):
    (folder / tokens.NAMES[one.kind]).write_bytes(one.content)
    needs += [name for name in one.packages if name not in needs]
  if trained.familiarity:
    trained.familiarity.save(folder)
  shutil.copy(alpro_loader.__file__, folder)
  (folder / 'requirements.txt').write_text('\n'.join([*needs, '']))
  np.savez(folder / _PARAMETERS, **params)
  (folder / 'programs').mkdir()
  for name, exported in made.items():
    (folder / _file(name)).write_bytes(exported.serialize())
  manifest = _describe(trained, made, params)
  manifest['files'] = {
    part: {'bytes': (folder / part).stat().st_size, 'sha256': files.sha256(folder / part)}
    for part in (*map(_file, made), _PARAMETERS, *(x['file'] for x in _texts(trained).values()))
  }
  _write_manifest(folder, manifest)
  return manifest


def _describe(trained, made, params):
  """Returns the manifest but for its files."""
  data, origin = trained.config.data, trained.origin
  temperature = trained.params.get('temperature')
  if temperature is not None:
    temperature = float(np.clip(temperature, *trained.model.config.temperature_range))
  return {
    'format': alpro_loader.FORMAT,
    'source': {
      'task': trained.config.task,
      'step': origin and origin.step,
      'checkpoint_digest': origin and origin.digest,
    },
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      'numpy': np.__version__,
    },
    'model': trained.model.config.to_dict(),
    'platforms': list(next(iter(made.values())).platforms),
    'programs': {name: _describe_program(name, exported) for name, exported in made.items()},
    'parameters': {'file': _PARAMETERS, 'count': sum(x.size for x in params.values())},
    'preprocessing': {
      'frames': data.frames,
      'choose': 'uniform: frame floor(k n / frames) of n, k from 0',
      'image_size': data.image_size,
      'resize': data.resize,
      'resize_mode': data.resize_mode,
      'crop': 'centre',
      'pixels': 'uint8 RGB in 0..255; the program subtracts mean and '
      'divides by std, of RGB in 0..1',
      'mean': list(trained.model.config.video.pixel_mean),
      'std': list(trained.model.config.video.pixel_std),
    },
    **_texts(trained),
    'temperature': temperature,
    'answers': list(trained.answers),
    # What the loader has no use for, but alpro_jax.load.
    **{name: x for name in ('entities', 'templates') if (x := (trained.meta or {}).get(name))},
  }


def _texts(trained):
  """What the manifest says of tokenizers: `text`, and `tower` of a text tower's beside it."""
  ids, _, *tower_ids = programs.encode(trained, [''])
  return {
    name: {
      'file': tokens.NAMES[one.kind],
      'kind': one.kind,
      'vocab_size': one.vocab_size,
      'max_tokens': rows.shape[1],
      'special': one.special._asdict(),
    }
    for name, one, rows in zip(
      ('text', 'tower'), tokens.parts(trained.tokenizer), (ids, *tower_ids), strict=False
    )
  }


def _describe_program(name, exported):
  def listed(specs):
    return [
      {
        'name': name,
        'shape': [x if isinstance(x, int) else str(x) for x in spec.shape],
        'dtype': str(spec.dtype),
      }
      for name, spec in specs.items()
    ]

  signature = programs.signature(name, exported)
  return {
    'file': _file(name),
    'inputs': listed(signature.inputs),
    'outputs': listed(signature.outputs),
    'parameters': list(signature.parameters),
    'calling_convention': exported.calling_convention_version,
  }


def _file(program):
  return f'programs/{program}.jax_export'


def _write_manifest(folder, manifest):
  text = json.dumps(manifest, indent=1, ensure_ascii=False)
  (folder / alpro_loader.MANIFEST).write_text(text + '\n', encoding='utf-8')
