"""How well a search finds the moment of a text in a video, by the spans of the index.

  python -m benchmarks.localisation --videos=20 2 4 2,4 2,4,6:0.5

Videos are joined from held-out clips of the demo's world, six each with six captions,
some played at half or a third of the speed: 2, 4 or 6 seconds with known borders. Each
caption searches its own video. An alternative is --span of search.py and, behind a
colon, the stride as a share of it. R@n at IoU x: for which share of the captions one of
the first n hits overlaps the truth by x of their union.
"""

import argparse
import json
import os
import pathlib
import tempfile

import numpy as np

import alpro_jax
from alpro_jax.evaluation.encoder import Encoder
from alpro_jax.search import indexing, querying
from alpro_jax.search.store import Store, key
from examples.shapes import files
from examples.shapes.scenes import World
from examples.shapes.words import caption

JOINED = 6
IOU = (0.3, 0.5, 0.7)


def make(folder: pathlib.Path, videos: int, seed: int) -> list[tuple[str, str, float, float]]:
  """Writes videos; returns (name, caption, start, stop) of what they show."""
  rng, world = np.random.default_rng(seed), World(seed=seed, renderings=1)
  drawn = files.make_arrays(world, 'test')
  order, truth = rng.permutation(len(drawn['clips'])), []
  for number in range(videos):
    name, frames = f'{number:03}.mp4', []
    seen: set[str] = set()
    while len(seen) < JOINED:
      chosen, order = order[0], order[1:]
      text = caption(drawn['clips'][chosen].scene)
      if text in seen:
        continue
      seen.add(text)
      start = len(frames) / world.rate
      frames.extend(drawn['frames'][chosen].repeat(rng.integers(1, 4), 0))
      truth.append((name, text, start, len(frames) / world.rate))
    files.write_video(str(folder / name), np.stack(frames), world.rate)
  return truth


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
  """Intersection over union of two spans."""
  common = min(one[1], other[1]) - max(one[0], other[0])
  return max(common, 0.0) / (max(one[1], other[1]) - min(one[0], other[0]))


def measure(encoder: Encoder, store: Store, truth, rerank_k: int) -> dict[str, float]:
  """Returns R@1 and R@5 at each IoU, in percent."""
  best = []
  for name, text, start, stop in truth:
    where = f'video = {key(os.fsencode(name))}'
    (found,) = querying.search(encoder, store, [text], top=5, rerank_k=rerank_k, where=where)
    best.append([overlap((hit.start, hit.end), (start, stop)) for hit in found])
  return {
    f'R@{k} IoU {x}': round(100 * float(np.mean([max(own[:k]) >= x for own in best])), 1)
    for k in (1, 5)
    for x in IOU
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('spans', nargs='+')
  parser.add_argument('--model', default='shapes')
  parser.add_argument('--videos', type=int, default=20)
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--rerank_k', type=int, default=64)
  args = parser.parse_args()
  encoder = Encoder(alpro_jax.load(args.model).trained)
  with tempfile.TemporaryDirectory() as work:
    folder = pathlib.Path(work, 'videos')
    folder.mkdir()
    truth = make(folder, args.videos, args.seed)
    for number, given in enumerate(args.spans):
      spans, _, share = given.partition(':')
      span = tuple(map(float, spans.split(',')))
      cutting = {'span': span, 'stride': max(span) * float(share or 1)}
      output = pathlib.Path(work, f'index{number}')
      listed = indexing.list_videos(folder)
      report = indexing.update(encoder, listed, output, cutting=cutting, log=lambda line: None)
      found = measure(encoder, Store.open(output), truth, args.rerank_k)
      print(json.dumps({'span': given, 'clips': report['clips'], **found}), flush=True)


if __name__ == '__main__':
  main()
