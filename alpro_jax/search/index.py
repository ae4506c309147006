"""An index and the model that it was made with: a folder of videos, to be searched."""

import os

from absl import logging

from alpro_jax import files
from alpro_jax.evaluation import familiarity
from alpro_jax.evaluation.encoder import Encoder
from alpro_jax.search import gallery, indexing, querying
from alpro_jax.search.store import Store, show_name


class Index:
  """A folder of videos, cut into clips of some seconds and encoded; `len` counts them.

  `Model.index` makes one, `alpro_jax.open_index` opens one.

  Attributes:
    folder: where the index lies.
  """

  def __init__(self, encoder: Encoder, folder: str | os.PathLike):
    """Opens an index.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is none of ours, or was made with another model.
    """
    self._encoder, self._store = encoder, Store.open(folder)
    indexing.check_checkpoint(self._store, indexing.made_with(encoder.trained))
    if not encoder.trained.familiarity:
      logging.warning(familiarity.NO_SUMMARY)
    self.folder = self._store.folder

  @property
  def skipped(self) -> dict[str, str]:
    """Why videos were left out when it was last brought up to date, by path."""
    return {
      show_name(self._store.path(os.fsencode(one['video']))): f'{one["reason"]}: '
      f'{one["detail"]}'.rstrip(': ')
      for one in self._store.report().get('problems', [])
      if not one['clips']
    }

  def __repr__(self) -> str:
    videos, clips = self._store.counts()
    return (
      f'<alpro_jax.Index {self.folder}: {videos} videos below {self._store.shown_folders} in '
      f'{clips} clips, {len(self.skipped)} left out>'
    )

  def __len__(self) -> int:
    return self._store.counts()[1]

  def search(
    self, text: str, *, k: int = 5, rerank_k: int = 64, page: str | os.PathLike = ''
  ) -> querying.SearchResult:
    """Finds the clips that fit a text; warns if it is far from those of training.

    Args:
      text: to search by.
      k: hits to return.
      rerank_k: nearest clips by similarity that the fusion encoder reads, at least k,
        if the model was trained to match; 0 goes by similarity alone.
      page: HTML file to write, with small copies of the hits to play; '' writes none.

    Returns:
      a sequence of hits, the best first, each with `path`, `start` and `end` in seconds,
      and `score`.

    Raises:
      ValueError: if nothing was indexed, or the text is none.
    """
    if not isinstance(text, str) or not text.strip() or k < 1:
      raise ValueError(f'expected a text and k of at least 1, got {text!r} and {k}.')
    (found,) = querying.search(
      self._encoder, self._store, [text], top=k, rerank_k=rerank_k and max(rerank_k, k)
    )
    familiarity.warn_of_far([found.far], [text], 'texts')
    if page:
      files.write_text(page, gallery.render(self._store, [found], copy_all=True))
    return found

  def add(
    self, folder: str | os.PathLike, *, skip_unreadable: bool = True, retry: bool = False
  ) -> None:
    """Brings it up to date with a folder of videos, which may be a new one.

    Args:
      folder: of videos; only what is new or changed is decoded.
      skip_unreadable, retry: see `Model.index`.

    Raises:
      FileNotFoundError: if there is no such folder.
      UnreadableVideo: for the first that cannot be read, unless such are skipped.
      ValueError: if it holds no video.
    """
    listed = indexing.list_videos(folder)
    indexing.update(
      self._encoder, listed, self.folder, cutting={}, skip_unreadable=skip_unreadable, retry=retry
    )
    self._store = Store.open(self.folder)

  def close(self) -> None:
    """Lets go of its files."""
    self._store.close()
