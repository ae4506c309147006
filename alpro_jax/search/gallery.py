"""What was found, as a page that stands alone."""

import base64
import os
import urllib.parse

from alpro_jax.evaluation import page
from alpro_jax.evaluation.page import escape as _
from alpro_jax.search.querying import Found, Hit
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


def render(store: Store, found: list[Found]) -> str:
  """Returns the page of all texts."""
  about = store.about
  videos, clips = store.counts()
  top = page.facts([
      ('videos', f'{videos:,} in {clips:,} clips, {about["root"]}'),
      ('checkpoint', f'{about["checkpoint"]["path"]}, step '
                     f'{about["checkpoint"]["step"]}')])
  return page.document(
      'What was found', f'<style>{_STYLE}</style>{top}',
      [(f'“{one.text}”', _hits(store, one)) for one in found])


def _hits(store, found):
  if found.read:
    how = (f'The {found.read} nearest clips by similarity were read by the '
           'fusion encoder; its probability of a match decides the order.')
  else:
    how = 'In the order of similarity; the fusion encoder was not asked.'
  cards = ''.join(
      _card(store, hit, number) for number, hit in enumerate(found.hits, 1))
  return (f'<p class="legend">{how} {found.seconds:.2f} s.</p>'
          f'<div class="hits">{cards}</div>')


def _card(store, hit: Hit, number):
  strip = base64.b64encode(store.strip(hit.clip)).decode()
  name = show_name(hit.name)
  path = os.path.join(bytes.fromhex(store.about['root_bytes']), hit.name)
  link = (f'file://{urllib.parse.quote(path)}'
          f'#t={hit.start:.2f},{hit.stop:.2f}')
  score = hit.similarity if hit.match is None else hit.match
  what = 'similarity' if hit.match is None else 'match'
  figure = f'{score:.2f}' if hit.match is None else f'{100 * score:.1f} %'
  beside = '' if hit.match is None else (
      f'<span class="soft">similarity {hit.similarity:.2f}</span>')
  return (
      f'<figure class="hit"><a href="{_(link)}"><img alt="{_(name)}" '
      f'src="data:image/jpeg;base64,{strip}"></a><figcaption>'
      f'<b>{number}</b><span class="name">{_(name)}</span>'
      f'<span class="span">{show_time(hit.start)} – {show_time(hit.stop)}'
      f'</span></figcaption><div class="score">'
      f'{page.bar(100 * max(score, 0))}<span>{what} {_(figure)}</span>'
      f'{beside}</div></figure>')


_STYLE = '''
main{max-width:1060px}
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));
gap:22px 26px;margin-top:12px}
.hit{margin:0;min-width:0}
.hit img{width:100%;height:150px;object-fit:contain;image-rendering:auto;
background:#f1f1ec;border:1px solid var(--line)}
.hit figcaption{display:flex;gap:10px;align-items:baseline;margin-top:6px;
color:var(--ink)}
.hit .name{flex:1;min-width:0;overflow-wrap:anywhere}
.hit .span{color:var(--soft);white-space:nowrap;
font-variant-numeric:tabular-nums}
.score{display:grid;grid-template-columns:1fr auto auto;gap:12px;
align-items:center;font:13px system-ui,'DejaVu Sans',sans-serif;margin-top:3px;
font-variant-numeric:tabular-nums}
.soft{color:var(--soft)}
@media(max-width:520px){.hits{grid-template-columns:1fr}}
'''
