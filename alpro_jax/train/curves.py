"""TensorBoard's files of a run: curves, its options, and which curves share a chart."""

import json
import pathlib

import jax
from ml_collections import ConfigDict

from alpro_jax.train import options

# Tab 'Custom Scalars': title of a chart -> expressions for the names of its curves.
CHARTS = {
  'Losses': ('train/loss(/.+)?',),
  'Losses on held-out clips': ('eval/loss(/.+)?',),
  'Retrieval: text finds its video': ('eval/t2v_r[0-9]+',),
  'Retrieval: video finds its text': ('eval/v2t_r[0-9]+',),
  'Right answers': ('eval/accuracy(/.+)?',),
  'Clips per second': ('time/clips_per_second',),
  'Share of waiting for data': ('time/waiting_share',),
  'Shares of the time, over all starts': ('goodput/.+',),
  'Memory, GiB': ('memory/.+',),
}


def open_writer(folder: pathlib.Path):
  """Returns a writer of clu.metric_writers; only process 0 writes files."""
  # Here, not at the top: they import TensorFlow.
  from clu import metric_writers

  first = jax.process_index() == 0
  return metric_writers.create_default_writer(folder if first else None, just_logging=not first)


def describe(folder: pathlib.Path, config: ConfigDict) -> None:
  """Adds the options of a run, in the tab 'Text', and its charts."""
  if jax.process_index() != 0:
    return
  import tensorflow as tf
  from tensorboard.plugins.custom_scalar import layout_pb2, summary

  charts = [
    layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
    for title, tags in CHARTS.items()
  ]
  layout = layout_pb2.Layout(category=[layout_pb2.Category(title='Run', chart=charts)])
  writer = tf.summary.create_file_writer(str(folder), filename_suffix='.options')
  with writer.as_default(step=0):
    tf.summary.text('options', options_table(config))
    tf.summary.experimental.write_raw_pb(summary.pb(layout).SerializeToString())
  writer.close()


def options_table(config: ConfigDict) -> str:
  """Returns all options as a table in Markdown, by the names of their flags."""
  flat = options.flat({'config': json.loads(config.to_json())})
  rows = [f'| {name} | {value!r} |' for name, value in flat.items()]
  return '\n'.join(['| option | value |', '|---|---|', *rows])
