"""TensorBoard's files, read as TensorBoard reads them."""

import re

from ml_collections import ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from alpro_jax.train import curves


def test_options_and_charts_are_shown(tmp_path):
  config = ConfigDict({'seed': 3, 'loss': {'vtc_chunk': 0, 'negatives': 'global'}})
  writer = curves.open_writer(tmp_path)
  curves.describe(tmp_path, config)
  writer.write_scalars(1, {'train/loss': 2.0, 'train/loss/vtc': 1.0})
  writer.flush()
  writer.close()
  found = EventAccumulator(str(tmp_path)).Reload()
  [shown] = found.Tensors('options')
  text = shown.tensor_proto.string_val[0].decode()
  assert "| config.loss.negatives | 'global' |" in text and '| config.seed | 3 |' in text
  [stored] = found.Tensors('custom_scalars__config__')
  layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
  losses = layout.category[0].chart[0]
  [expression] = losses.multiline.tag
  assert losses.title == 'Losses' and re.fullmatch(expression, 'train/loss/vtc')


def test_every_chart_has_a_curve():
  """Names that a run writes: see train/progress.py and evaluation/split.py."""
  names = ['train/loss', 'eval/loss', 'eval/t2v_r10', 'eval/v2t_r1', 'eval/accuracy']
  names += ['time/clips_per_second', 'time/waiting_share', 'memory/host_peak_gib']
  names += ['goodput/steps']
  for title, expressions in curves.CHARTS.items():
    assert any(re.fullmatch(e, name) for e in expressions for name in names), title
