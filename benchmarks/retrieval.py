"""Times the evaluation of retrieval on made-up data."""

import functools
import time

import jax
import numpy as np

from alpro_jax import flops, sharding
from alpro_jax.evaluation import candidates, retrieval
from alpro_jax.evaluation.scorer import Scorer
from benchmarks import dry_run


def measure(config, *, texts: int, videos: int, k: int, sample: int) -> dict:
  """Returns counts, rates and times of an evaluation.

  Encodes some videos and texts, reads some pairs by the fusion encoder, and
  says what all pairs and the candidates of k cost: FLOPs by formula, time from
  the measured rates. Features of random weights say nothing about recall; for
  that see the table of launch/evaluate.py --recall_table.

  Args:
    config: of retrieval; see configs/common.py.
    texts: distinct texts of the test set.
    videos: of the test set.
    k: candidates of every text and every video.
    sample: texts and videos that are really encoded and paired. With 0 nothing
      is extrapolated: everything is encoded, and all pairs and then the
      candidates are read.
  """
  rng = np.random.default_rng(0)
  data, length = config.data, config.data.max_text_tokens
  mesh = sharding.mesh_from_config(config.mesh)
  vocab_size = dry_run.text_info(config).vocab_size
  task = dry_run.task(config, mesh)
  params = sharding.create(task.init, jax.random.key(0), mesh)

  def encode(names, tokens):
    ids = rng.integers(5, vocab_size, (len(names), tokens), np.int32)
    return ids, np.ones(ids.shape, bool)

  scorer = Scorer(
    task.model,
    params,
    mesh,
    encode=encode,
    max_text_tokens=length,
    batch_size=config.eval.batch_size,
    pairs_per_call=config.eval.pairs_per_call,
  )
  some = [min(sample or total, total) for total in (texts, videos)]

  def batches(total):
    size = -(-min(config.eval.batch_size, total) // mesh.size) * mesh.size
    shape = (size, data.frames, data.image_size, data.image_size, 3)
    pixels = rng.integers(0, 256, shape, np.uint8)
    for start in range(0, total, size):
      record = np.arange(start, start + size)
      yield {'video': pixels, 'record': np.minimum(record, total - 1), 'valid': record < total}

  def timed(call):
    call()  # Compiles.
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start

  encoded_texts, text_s = timed(lambda: scorer.embed_texts(['x'] * some[0]))
  encoded_videos, video_s = timed(lambda: scorer.embed_videos(batches(some[1]), some[1]))
  _, pairs_s = timed(lambda: scorer.matching(encoded_texts, encoded_videos))
  text_s, video_s = text_s / some[0], video_s / some[1]
  pairs_per_s = some[0] * some[1] / pairs_s

  if sample:
    # The worst case: no text is near a video that it is near to.
    read, near_s = _candidates(rng, texts, videos, k), 0.0
  else:
    own = np.arange(min(texts, videos))
    found, near_s = timed(
      lambda: retrieval.score(
        scorer,
        encoded_texts,
        encoded_videos,
        [str(i) for i in range(texts)],
        np.stack([own, own], 1),
        retrieval.Scoring(rerank_k=k),
      )
    )
    read = int(found.cost['pairs'])

  encoding_s = texts * text_s + videos * video_s
  count = functools.partial(
    flops.retrieval,
    task.model.config,
    texts=texts,
    videos=videos,
    frames=data.frames,
    image_size=data.image_size,
    length=length,
  )
  near_s = near_s or read / pairs_per_s
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'dtype': config.model.dtype,
    'texts': texts,
    'videos': videos,
    'rerank_k': k,
    'extrapolated_from': some if sample else None,
    'texts_per_s': 1 / text_s,
    'videos_per_s': 1 / video_s,
    'pairs_per_s': pairs_per_s,
    'encoding_s': encoding_s,
    'all_pairs': texts * videos,
    'all_pairs_tflop': count(pairs=texts * videos) / 1e12,
    'all_pairs_s': encoding_s + texts * videos / pairs_per_s,
    'candidates': read,
    'candidates_tflop': count(pairs=read) / 1e12,
    'candidates_s': encoding_s + near_s,
    'times_fewer_flop': count(pairs=texts * videos) / count(pairs=read),
  }


def _candidates(rng, texts, videos, k):
  """Distinct pairs among the k nearest of both sides, of random features."""
  rows, columns = (rng.standard_normal((n, 64), np.float32) for n in (texts, videos))
  near = [candidates.top_k(x @ y.T, k).item for x, y in ((rows, columns), (columns, rows))]
  return len(candidates.union(*near).text)
