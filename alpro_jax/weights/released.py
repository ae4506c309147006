"""ALPRO's published checkpoints: where they are, and what to expect of them.

The addresses are those that the configs of LAVIS name, which publishes the authors' weights.
"""

import collections
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jinja2

from alpro_jax import files
from alpro_jax.data import download

LICENCE = 'bsd-3-clause'
_LAVIS = 'https://storage.googleapis.com/sfr-vision-language-research/LAVIS'
_TEMPLATE = 'released_card.md.jinja'


class File(NamedTuple):
  """One published file.

  Attributes:
    flag: of launch/convert.py that takes it.
    name: that it gets here, and has in a mirror.
    url: its address.
    sha256: in hex; '' is not known.
  """

  flag: str
  name: str
  url: str
  sha256: str = ''


class Release(NamedTuple):
  """One published model.

  Attributes:
    title: of its card.
    task: as config.task names it.
    files: the weights first.
    data: what launch/evaluate.py measures it on.
    figures: (figure, value) that are published, and whose they are.
  """

  title: str
  task: str
  files: tuple[File, ...]
  data: str
  figures: tuple[tuple[str, str], ...]


def _weights(name):
  return File('original', name, f'{_LAVIS}/models/ALPRO/{name}')


def _answers(data):
  url = f'{_LAVIS}/datasets/{data}/train_ans2label.json'
  return File('answers', f'{data}_ans2label.json', url)


_VOCABULARY = File(
  'tokenizer',
  'vocab.txt',
  'https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt',
  '07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3',
)
_AUTHORS = 'text to video R@1 / R@5 / R@10, median rank, mean rank (authors)'
_BY_KIND = 'what / who / how / where / when (authors)'
RELEASES = {
  'pretrain': Release(
    'ALPRO, pre-trained on WebVid-2M and CC3M',
    'pretrain',
    (_weights('alpro_pretrain.pt'), _VOCABULARY),
    'data/msrvtt',
    (('MSRVTT without fine-tuning, text to video R@1 (paper)', '24.1'),),
  ),
  'msrvtt_retrieval': Release(
    'ALPRO, fine-tuned for retrieval on MSRVTT',
    'retrieval',
    (_weights('alpro_msrvtt_retrieval.pt'), _VOCABULARY),
    'data/msrvtt',
    ((_AUTHORS, '33.9 / 60.7 / 73.2, 3, 27.404'),),
  ),
  'didemo_retrieval': Release(
    'ALPRO, fine-tuned for retrieval on DiDeMo',
    'retrieval',
    (_weights('alpro_didemo_retrieval.pt'), _VOCABULARY),
    'data/didemo',
    ((_AUTHORS, '35.9 / 67.5 / 78.8, 3, 19.125'),),
  ),
  'msrvtt_qa': Release(
    'ALPRO, fine-tuned for questions on MSRVTT',
    'question_answering',
    (_weights('alpro_msrvtt_qa.pth'), _VOCABULARY, _answers('msrvtt')),
    'data/msrvtt_qa',
    (('answered right, % (authors)', '42.12'), (_BY_KIND, '36.05 / 52.24 / 85.67 / 42.80 / 78.88')),
  ),
  'msvd_qa': Release(
    'ALPRO, fine-tuned for questions on MSVD',
    'question_answering',
    (_weights('alpro_msvd_qa.pth'), _VOCABULARY, _answers('msvd')),
    'data/msvd_qa',
    (('answered right, % (authors)', '45.91'), (_BY_KIND, '37.02 / 58.59 / 81.62 / 46.43 / 72.41')),
  ),
}


def fetch(
  wanted: Sequence[File],
  folder,
  output,
  *,
  mirror: str = '',
  log: Callable[[str], None] = print,
  **limits,
) -> dict[str, pathlib.Path]:
  """Downloads published files that are not in a folder, saying first how large they are.

  Args:
    wanted: the files.
    folder: where they go, and stay for another conversion.
    output: where the conversion will be written, which needs space as well.
    mirror: http address of a folder with files of the same names, instead of
      their own addresses; it may be on this machine or in its network.
    log: takes the lines.
    limits: of download.download.
  Returns:
    {flag: path} of all of them.
  Raises:
    ValueError: there is too little space, or a file does not come or is not
      what it should be.
    OSError: a file cannot be written.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  chosen = [
    download.Wanted(
      f'{mirror.rstrip("/")}/{x.name}' if mirror else x.url, folder / x.name, x.sha256
    )
    for x in wanted
  ]

  def begin(missing):
    for one in missing:
      there = f', of which {_size(one.present)} are here' if one.present else ''
      size = 'size not said' if one.size is None else _size(one.size)
      log(f'to download: {one.wanted.path.name}, {size}{there}, from {one.wanted.url}')
    log(
      f'into {folder}, where {_size(_free(folder))} are free'
      if missing
      else f'nothing to download, all of it is in {folder}'
    )
    # What is converted is at least as large as the weights that it is made of.
    sizes = {one.wanted.path: one.size or 0 for one in missing}
    converted = sum(
      sizes.get(folder / x.name) or os.path.getsize(folder / x.name)
      for x in wanted
      if x.flag == 'original'
    )
    check_space(
      {
        folder: sum(max(0, (one.size or 0) - one.present) for one in missing),
        pathlib.Path(os.path.abspath(output)): converted,
      }
    )

  download.download(chosen, begin=begin, log=log, allow_local=bool(mirror), **limits)
  return {file.flag: one.path for file, one in zip(wanted, chosen, strict=True)}


def check_space(needed: dict[pathlib.Path, int]) -> None:
  """Raises ValueError if a disk has too little space for {place: bytes}, summed for each disk."""
  disks = collections.defaultdict(dict)
  for path, size in needed.items():
    disks[os.stat(_existing(path)).st_dev][path] = size
  for places in disks.values():
    free, total = _free(next(iter(places))), sum(places.values())
    if total > free:
      parts = ' and '.join(f'{_size(size)} in {path}' for path, size in places.items())
      raise ValueError(
        f'the disk is too small: {parts} are needed, and {_size(free)} are free; make room, or '
        'choose a --downloads and an --output on other disks.'
      )


def _existing(path):
  """Returns the first folder above, or the path itself, that is there."""
  return next(place for place in (path, *path.parents) if place.exists())


def _free(path):
  return shutil.disk_usage(_existing(path)).free


def _size(count):
  for unit, name in ((10**9, 'GB'), (10**6, 'MB')):
    if count >= unit:
      return f'{count / unit:.1f} {name}'
  return f'{count / 1000:.1f} kB'


def card(name: str, folder, paths: dict[str, pathlib.Path], mirror: str = '') -> str:
  """Returns the model card, Markdown, of a release that is converted into a folder.

  Args:
    name: one of RELEASES.
    folder: of the checkpoint.
    paths: {flag: file}, of which the digests are stated.
    mirror: as in `fetch`.
  """
  release = RELEASES[name]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
  )
  origins = {x.flag: f'{mirror.rstrip("/")}/{x.name}' if mirror else x.url for x in release.files}
  return environment.get_template(_TEMPLATE).render(
    name=name,
    release=release,
    licence=LICENCE,
    folder=folder,
    files=[
      (flag, path.name, origins[flag], path.stat().st_size, files.sha256(path))
      for flag, path in paths.items()
    ],
  )
