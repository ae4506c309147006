"""The evaluations of a run between its steps: held-out figures, losses, pictures."""

import numpy as np

from alpro_jax.data import dataset
from alpro_jax.evaluation import samples, split
from alpro_jax.evaluation.held_out_loss import HeldOutLoss
from alpro_jax.evaluation.trained import TrainedModel


class DuringTraining:
  """Evaluates on `config.eval.sources` between the steps of a training.

  The figures of the first source are called eval/t2v_r1, eval/accuracy and so
  on. With several, those of each stand under its number as well: eval/0/t2v_r1,
  eval/1/t2v_r1. Those that have an interval are given: the others, such as the
  number of videos, do not depend on the model. Of the first source a few clips are
  shown as well, see samples.show.
  """

  def __init__(self):
    self._opened = {}

  def __call__(self, plan, params, step: int) -> dict[str, float | np.ndarray]:
    """See train/loop.py; the plan has what is frozen."""
    del step
    found = {}
    for prefixes, trained, prepared, style in self._splits(plan, params):
      evaluated = split.evaluate(trained, prepared, style=style)
      found |= {
        f'{prefix}/{name}': float(evaluated.found.metrics[name])
        for prefix in prefixes
        for name in evaluated.found.intervals
      }
      if 'eval' in prefixes:
        pictures = samples.show(evaluated, plan.config.eval.pictures, plan.frozen, plan.task)
        found |= {f'eval/{name}': shown for name, shown in pictures.items()}
    return found

  def names(self, plan) -> list[str]:
    """Names of the figures it will give; opens the sets and scores nothing.

    Raises:
      ValueError: if a set has nothing to ask, no question whose answer can be
        given, or cannot be scored as config.eval says.
      FileNotFoundError: if a set is not there.
    """
    return [
      f'{prefix}/{name}'
      for prefixes, trained, prepared, style in self._splits(plan, None)
      for name in split.figure_names(trained, split.select(trained, prepared, (style,)), style)
      for prefix in prefixes
    ]

  def _splits(self, plan, params):
    """Yields (prefixes of the names, model, set, style) of every source."""
    config, task, tokenizer, mesh = plan[:4]
    trained = TrainedModel(task.model, params, config, tokenizer, mesh, tuple(task.answers))
    sources = config.eval.sources
    for number, source in enumerate(sources):
      where = source.path, source.split
      if where not in self._opened:
        self._opened[where] = dataset.open_dataset(*where)
      prefixes = ['eval'] * (number == 0) + [f'eval/{number}'] * (len(sources) > 1)
      yield prefixes, trained, self._opened[where], source.style


def evaluations(config) -> list[DuringTraining | HeldOutLoss]:
  """The evaluations of a run of launch/main.py."""
  if not config.eval.sources:
    return []
  return [DuringTraining(), *([HeldOutLoss()] if config.eval.loss_batches else [])]
