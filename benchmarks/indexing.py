"""Measures where the time of indexing goes, beside ffmpeg that decodes the same frames.

  python -m benchmarks.indexing FOLDER --checkpoint=shapes

CPU seconds of one process that does all parts in turn, video after video, after one that
counts for nothing: compilation. All is stored at once, as indexing.py does every ten
seconds. ffmpeg runs with one thread, picks as many frames per second, and scales them to
the same size.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import tempfile
import time

from alpro_jax import api
from alpro_jax.data import cut
from alpro_jax.evaluation.encoder import Encoder
from alpro_jax.search import indexing
from alpro_jax.search.store import Indexed, Row, Store


def _cpu():
  return time.process_time()


def _ffmpeg(path, cutting):
  """CPU seconds of ffmpeg."""
  side = cutting.short_side
  scale = f"scale='if(gt(iw,ih),-2,min(iw,{side}))':'if(gt(iw,ih),min(ih,{side}),-2)'"
  picked = f'fps={cutting.fps},{scale},format=rgb24'
  command = f'ffmpeg -v error -nostdin -threads 1 -filter_threads 1 -i {path} -an -vf'.split()
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run([*command, picked, '-f', 'null', '-'], check=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: pathlib.Path, checkpoint: str) -> dict[str, float]:
  """Returns CPU seconds of each part per minute of video, and their shares."""
  encoder = Encoder(api.load(checkpoint).trained)
  listed = indexing.list_videos(folder)
  cutting = indexing.choose_cutting(encoder, None, {})
  spent = dict.fromkeys(('decode', 'cut to JPEG', 'read JPEG', 'encode', 'store', 'ffmpeg'), 0.0)
  decoding = 0.0
  frames = cut.video.iterate_frames

  def watched(*args, **options):
    nonlocal decoding
    start = _cpu()
    for frame in frames(*args, **options):
      decoding += _cpu() - start
      yield frame
      start = _cpu()
    decoding += _cpu() - start

  cut.video.iterate_frames = watched
  pixels = encoder.pixels
  reading = 0.0

  def read(clips):
    nonlocal reading
    start = _cpu()
    try:
      return pixels(clips)
    finally:
      reading += _cpu() - start

  encoder.pixels = read
  seconds, clips, videos = 0.0, 0, 0
  with tempfile.TemporaryDirectory() as work:
    about = indexing.describe(encoder, [listed.root], cutting, True)
    store = Store.create(f'{work}/index', about)
    waiting = []
    for number, file in enumerate([listed.files[0], *listed.files]):
      path = os.fsdecode(store.path(file.name))
      decoding = reading = 0.0
      marks = [_cpu()]
      found = cut.cut_video((path, None), cutting=cutting)
      if not found.clips or found.reason:
        continue
      marks.append(_cpu())
      made = encoder.videos(list(found.clips))
      marks.append(_cpu())
      rows = [
        Row(clip.start, clip.stop, vector, tokens, clip.strip)
        for clip, vector, tokens in zip(found.clips, made.feature, made.tokens, strict=True)
      ]
      if not number:
        continue
      waiting.append(Indexed(file, rows))
      cutting_all, encoding = (b - a for a, b in zip(marks, marks[1:], strict=False))
      spent['decode'] += decoding
      spent['cut to JPEG'] += cutting_all - decoding
      spent['read JPEG'] += reading
      spent['encode'] += encoding - reading
      spent['ffmpeg'] += _ffmpeg(path, cutting)
      seconds += found.clips[-1].stop
      clips, videos = clips + len(found.clips), videos + 1
    start = _cpu()
    store.put(*waiting)
    spent['store'] = _cpu() - start
    store.close()
  beside = spent.pop('ffmpeg')
  total = sum(spent.values())
  figures = {'videos': videos, 'clips': clips, 'minutes of video': seconds / 60}
  figures |= {f'{name}, CPU s a minute': x / seconds * 60 for name, x in spent.items()}
  figures |= {
    'in all, CPU s a minute': total / seconds * 60,
    'videos per CPU s': videos / total,
    'ffmpeg, CPU s a minute': beside / seconds * 60,
    'share of decoding and encoder': (spent['decode'] + spent['encode']) / total,
  }
  return figures


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--checkpoint', default='shapes')
  args = parser.parse_args()
  for name, value in measure(args.folder, args.checkpoint).items():
    print(f'{name:32} {value:,.4g}')


if __name__ == '__main__':
  main()
