"""What was found, as a page that stands alone."""

import pathlib

from alpro_jax.data import playing
from alpro_jax.evaluation import page, pictures
from alpro_jax.search.querying import Hit, SearchResult
from alpro_jax.search.store import Store


def render(store: Store, found: list[SearchResult], *, copy_all: bool = False) -> str:
  """Returns the page of all texts, with a player for every hit.

  A hit plays from its file where browsers can, else from a small copy in the page.

  Args:
    store: the index.
    found: in it.
    copy_all: copy every hit into the page, which is then shown away from the files.
  """
  checkpoint = store.about['checkpoint']
  videos, clips = store.counts()
  spans = list(dict.fromkeys((hit.path, hit.start, hit.end) for one in found for hit in one.hits))
  ids = [hit.clip for one in found for hit in one.hits]
  strips = dict(zip(ids, store.strips(ids), strict=True))
  played = dict(zip(spans, playing.prepare(spans, copy_all=copy_all), strict=True))
  return page.render(
    'gallery.html',
    title='What was found',
    about=[
      ('videos', f'{videos:,} in {clips:,} clips, {store.shown_folders}'),
      ('checkpoint', f'{checkpoint["path"]}, step {checkpoint["step"]}'),
    ],
    found=[
      (one, [_card(store, strips[hit.clip], hit, played) for hit in one.hits]) for one in found
    ],
  )


def _card(store, strip, hit: Hit, played):
  own = played[hit.path, hit.start, hit.end]
  link = f'{pathlib.Path(hit.path).as_uri()}#t={hit.start:.2f},{hit.end:.2f}'
  return {
    'hit': hit,
    'name': store.shown(hit.name),
    'why_not': own.why_not,
    'link': link,
    'played': pictures.encode(own.copy, 'video/mp4') if own.copy else link,
    'strip': pictures.encode(strip, 'image/jpeg'),
  }
