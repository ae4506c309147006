"""Pre-training without contrast: what VTC brings (paper 4.4).

Wrong pairs are drawn as in all other rows, first uniformly where the recipe says so and
then by similarity, which nothing trains here. To leave that out of the comparison give
--config.loss.uniform_negative_steps=STEPS, the steps of the run, here and to `full`."""

from configs.ablations import stages


def change(config, stage):
  if stage == 'pretrain':
    config.loss.vtc = 0.0


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
