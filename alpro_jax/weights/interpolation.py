"""Interpolates a fine-tuned model with the one that it started from, parameter by parameter.

WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903): between the two lie models that know the new
data nearly as well as the one, and most of what the other knew; docs/fine-tuning.md.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alpro_jax import files, sharding
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params, resized_tables
from alpro_jax.train import checkpoints, identity, run_folder, trainable, trees
from alpro_jax.train.checkpoints import Checkpoint
from alpro_jax.train.state import TrainState


class Start(NamedTuple):
  """What a fine-tuned model shares with its start.

  Attributes:
    params: of the start, {name: float32 array}, those that both have.
    only_tuned: names that stay as the fine-tuned model has them.
    only_start: names that are left out.
  """

  params: Mapping[str, jax.Array]
  only_tuned: tuple[str, ...]
  only_start: tuple[str, ...]


def load_start(start: Checkpoint, tuned: Checkpoint, abstract: Any, keep: str = '') -> Start:
  """Loads what `interpolate` needs of the start.

  Args:
    start: the checkpoint that the fine-tuning began from, or another one of its model.
    tuned: the fine-tuned one.
    abstract: its parameters, as ShapeDtypeStructs with sharding; tables of positions are
      resized to them. A head whose rows stand for other labels is the fine-tuned one's alone.
    keep: patterns, as those of config.optimizer, of parameters that stay as the fine-tuned
      model has them: what reads time, where the start knew nothing of it.
  Raises:
    ValueError: if they are different models, with all that differs; or a pattern matches nothing.
  """
  fresh = _check_same_model(start, tuned)
  wanted, stored = trees.by_name(abstract), set(start.params_digests())
  kept = trainable.matching('--keep', trainable.listed(keep), wanted)
  both = (stored & wanted.keys()) - kept
  shared = {n: x for n, x in wanted.items() if n in both and not n.startswith(fresh)}
  params = start.load_params(trainable.nested(shared), unused=('',), resize=resized_tables())
  only_tuned, only_start = set(wanted) - set(shared), stored - set(wanted)
  return Start(trees.by_name(params), tuple(sorted(only_tuned)), tuple(sorted(only_start)))


@jax.jit
def interpolate(tuned: Any, start: Mapping[str, jax.Array], alpha: jax.Array | float) -> Any:
  """Returns alpha * tuned + (1 - alpha) * start: 0 is the start, 1 the fine-tuned model.

  Args:
    tuned: float32 tree.
    start: {name: array}, from `load_start`; other parameters stay as they are.
    alpha: float32[].
  """
  leaves = trees.by_name(tuned)
  mixed = {name: alpha * leaves[name] + (1 - alpha) * x for name, x in start.items()}
  return trees.like(tuned, leaves | mixed)


def write(start: Checkpoint, tuned: Checkpoint, alpha: float, output, keep: str = '') -> Start:
  """Writes the interpolated model to a folder, as a checkpoint like those of a training.

  Args:
    start: see `load_start`.
    tuned: the fine-tuned model.
    alpha: share of it.
    output: workdir to make.
    keep: see `load_start`.
  Raises:
    ValueError: if the models differ, or alpha is not in 0..1.
  """
  check_alpha(alpha)
  of_tuned = ('arrays', 'evaluation', 'evaluation_due')
  meta = {name: value for name, value in tuned.meta.items() if name not in of_tuned}
  abstract = abstract_params(Alpro(AlproConfig.from_dict(meta['model'])), sharding.make_mesh())
  found = load_start(start, tuned, abstract, keep)
  params = interpolate(tuned.load_params(abstract), found.params, alpha)
  meta['interpolated'] = {
    'alpha': alpha,
    'keep': keep,
    'start': {'path': str(start.folder), 'digest': start.digest},
    'tuned': {'path': str(tuned.folder), 'digest': tuned.digest},
  }
  words = {file.name: file.read_bytes() for file in sorted(tuned.words.glob('*'))}
  with files.folder(output) as draft:
    store = checkpoints.Checkpoints(draft, words=words)
    store.save(TrainState(jnp.int32(meta['step']), params, ()), meta)
    store.close()
    run_folder.write_json(pathlib.Path(draft) / 'config.json', meta['config'])
  return found


def check_alpha(alpha: float) -> None:
  """Raises ValueError for what is no share."""
  if not 0 <= alpha <= 1:
    raise ValueError(f'{alpha=} must lie between 0, the start, and 1, the fine-tuned model.')


def _check_same_model(start, tuned) -> tuple[str, ...]:
  """Refuses two different models; returns the heads that have other labels."""
  was, now = start.meta, tuned.meta
  lines = [
    f'{name} is {one!r} and {other!r}'
    for name, (one, other) in identity.other_sizes(was['model'], now['model']).items()
  ]
  lines += [
    f'their {part}s differ, so that the same id is another word'
    for part in identity.TOKENIZERS
    if part in was and part in now and was[part]['digest'] != now[part]['digest']
  ]
  if lines:
    raise ValueError(
      f'{start.folder} and {tuned.folder} are different models, between which there is none: '
      f'{"; ".join(lines)}. Pass the checkpoint that the fine-tuning began from.'
    )
  return tuple(
    f'{head}/'
    for labels, head in identity.LABELLED.items()
    if was.get(labels)
    and now.get(labels)
    and identity.differences({labels: was[labels]}, {labels: now[labels]})
  )
