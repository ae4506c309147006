"""What was found, as a page that stands alone."""

import os
import urllib.parse

from alpro_jax.evaluation import page, pictures
from alpro_jax.search.querying import Hit, SearchResult
from alpro_jax.search.store import Store, show_name


def show_time(seconds: float) -> str:
  """3723.4 -> '1:02:03', 63.4 -> '1:03.4'; tenths below ten minutes."""
  if seconds < 600:
    tenths = round(10 * seconds)
    return f'{tenths // 600}:{tenths // 10 % 60:02}.{tenths % 10}'
  whole = round(seconds)
  hours, rest = divmod(whole, 3600)
  minutes = f'{rest // 60:02}' if hours else f'{rest // 60}'
  return (f'{hours}:' if hours else '') + f'{minutes}:{rest % 60:02}'


def render(store: Store, found: list[SearchResult]) -> str:
  """Returns the page of all texts."""
  root, checkpoint = store.about['root'], store.about['checkpoint']
  videos, clips = store.counts()
  return page.render(
    'gallery.html',
    title='What was found',
    about=[
      ('videos', f'{videos:,} in {clips:,} clips, {root}'),
      ('checkpoint', f'{checkpoint["path"]}, step {checkpoint["step"]}'),
    ],
    found=[(one, [_card(store, hit) for hit in one.hits]) for one in found],
  )


def _card(store, hit: Hit):
  path = os.path.join(store.root, hit.name)
  return {
    'hit': hit,
    'name': show_name(hit.name),
    'start': show_time(hit.start),
    'stop': show_time(hit.stop),
    'link': f'file://{urllib.parse.quote(path)}#t={hit.start:.2f},{hit.stop:.2f}',
    'strip': pictures.encode(store.strip(hit.clip), 'jpeg'),
  }
