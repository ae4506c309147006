"""Searches folders of your own videos by text, and asks about them.

Steps, each a word before its arguments. Everything stays in the folder
--index; repeat `index` whenever videos were added: only new and changed ones
are decoded. A video has changed if its size, its time or a digest of its first
and last 64 KiB is another.

  python launch/search.py find videos/ "a red circle" --checkpoint=runs/msrvtt
  python launch/search.py index videos/ --checkpoint=runs/msrvtt \\
    --index=runs/index
  python launch/search.py query "a red circle moves left" --index=runs/index
  python launch/search.py serve --index=runs/index
  python launch/search.py ask "videos/a clip.mp4" "what colour is it?" \\
    --checkpoint=runs/msvd_qa
  python launch/search.py embed --index=runs/index --output=vectors.npz
  python launch/search.py merge runs/part1 runs/part2 --index=runs/index
  python launch/search.py convert --index=runs/index

find    is `index` and then `query`; --index is NAME.index of a folder NAME, unless
        another is given.
index   cuts every video into clips of --span seconds, encodes them and stores
        vectors, thumbnails and, with --keep_tokens, what the fusion encoder
        reads. What could not be read is named in report.json of the index. Another
        folder is added to those of the index. --part=2/5 takes one of five parts,
        to be made on as many machines, each into an index of its own.
query   prints the best clips for each text and writes a page with them. The
        --rerank_k nearest are read by the fusion encoder, where it was
        trained to match; --fast goes by similarity alone.
serve   shows a page to search and play, and answers programs over HTTP, on this
        machine alone; another --host needs a --token. --answers=CHECKPOINT loads a
        model that answers questions beside that of the index.
ask     answers a question about a video, for each span and over all.
embed   writes video, start, stop and vector of every clip to .npz or .parquet.
merge   joins such parts, each an index, into a new one or one that is there.
convert turns an index of an earlier version (index.sqlite) into LanceDB tables.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import os
import pathlib
import sys
import time

from absl import flags, logging

from alpro_jax import files
from alpro_jax.data.annotations import printable

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', '', f'{command.MODEL} For `query`, only if it is no longer where it was.'
)
_INDEX = flags.DEFINE_string('index', '', 'Folder of the index.')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'Its file: only for checkpoints of earlier versions, if it has moved.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  '',
  'File for the page of `query` (gallery.html in the index) or '
  'for the vectors of `embed` (.npz or .parquet).',
)
_SPAN = flags.DEFINE_list(
  'span', None, 'Seconds of a clip, or several for clips of each, as 3,10; 10 for a new index.'
)
_STRIDE = flags.DEFINE_float(
  'stride',
  None,
  'Seconds from clip to clip, less than --span for overlap; of several spans the '
  "longest's, and of the others in proportion.",
)
_PART = flags.DEFINE_string('part', '1/1', 'Which part of the folder, as 2/5: see `merge`.')
_FPS = flags.DEFINE_float(
  'fps',
  None,
  'Frames per second among which those of a clip are chosen; 8 for a new index, 0 for all.',
)
_SHORT_SIDE = flags.DEFINE_integer(
  'short_side', None, 'Of decoded frames, in pixels; 256 for a new index.'
)
_KEEP_TOKENS = flags.DEFINE_bool(
  'keep_tokens',
  None,
  'Store what the fusion encoder reads; without, `query`'
  ' decodes its candidates again. On for a new index.',
)
_WORKERS = flags.DEFINE_integer(
  'workers', 0, 'Processes that decode; 0: one per core.', lower_bound=0
)
_TIMEOUT_S = flags.DEFINE_float(
  'timeout_s',
  None,
  'Seconds of work after which a video is given up (120, '
  'and more for long, large and high-definition videos).',
  lower_bound=0.001,
)
_RETRY = flags.DEFINE_bool('retry', False, 'Try again what could not be read last time.')
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 16, 'Clips that are encoded at once.', lower_bound=1
)
_TOP = flags.DEFINE_integer('top', 10, 'Clips to show.', lower_bound=1)
_RERANK_K = flags.DEFINE_integer(
  'rerank_k', 64, 'Nearest clips for the fusion encoder.', lower_bound=1
)
_COPY_CLIPS = flags.DEFINE_bool(
  'copy_clips', False, 'Copy all hits into the page, to show it away from the videos.'
)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address that `serve` listens at.')
_PORT = flags.DEFINE_integer(
  'port', 8000, 'And its port; 0 takes any.', lower_bound=0, upper_bound=65535
)
_TOKEN = flags.DEFINE_string(
  'token', '', "What requests must carry, 16 characters or more; 'new' makes one."
)
_OPEN = flags.DEFINE_bool('open', False, 'Open the page of `serve` in a browser.')
_ANSWERS = flags.DEFINE_string('answers', '', 'Checkpoint of question answering for `serve`.')
_FAST = flags.DEFINE_bool('fast', False, 'Without the fusion encoder.')

_STEPS = {
  'find': 'find DIR "a red circle moves left" --checkpoint=...',
  'index': 'index DIR --checkpoint=... --index=...',
  'query': 'query "a red circle moves left" --index=...',
  'serve': 'serve --index=...',
  'ask': 'ask VIDEO "what colour is the circle?" --checkpoint=...',
  'embed': 'embed --index=... --output=vectors.npz',
  'merge': 'merge PART1 PART2 --index=...',
  'convert': 'convert --index=...',
}


def main(step='', *rest):
  # What runs long has progress lines of its own.
  logging.set_verbosity(logging.WARNING)
  if step not in _STEPS:
    raise ValueError(f'{step!r} is no step; choose one of: {"; ".join(_STEPS.values())}.')
  wanted = {
    'find': range(2, 1000),
    'index': range(1, 2),
    'query': range(1, 1000),
    'serve': range(0, 1),
    'ask': range(2, 1000),
    'embed': range(0, 1),
    'merge': range(1, 1000),
    'convert': range(0, 1),
  }[step]
  if len(rest) not in wanted or not all(text.strip() for text in rest):
    raise ValueError(
      f'`{step}` was given {list(rest)}; it is used as: {_STEPS[step]}. Put '
      'texts and names with spaces in quotes.'
    )
  if step in ('find', 'index', 'ask', 'merge'):  # Of videos, and of parts of an index.
    files.on_disk(rest[0])
  needed = ('checkpoint',) if step in ('ask', 'find') else ('index',)
  if missing := [name for name in needed if not flags.FLAGS[name].value]:
    raise ValueError(f'--{missing[0]} is needed, as in: {_STEPS[step]}.')
  try:
    globals()[step](*rest)
  except KeyboardInterrupt:
    command.fail('interrupted; the same command goes on from here.', 130)


def find(folder, *texts):
  """Indexes a folder, as far as that is not done, and searches it."""
  by_name = not _INDEX.value
  if by_name:
    flags.FLAGS.index = f'{pathlib.Path(folder).absolute().name}.index'
  index(folder, alone=by_name)
  query(*texts)


def index(folder, *, alone=False):
  """Brings an index up to date with a folder; `alone` refuses that of other folders."""
  from alpro_jax.search import indexing
  from alpro_jax.search.store import Store

  start = time.monotonic()
  listed = indexing.list_videos(folder, _part())
  store = Store.open(_INDEX.value) if Store.exists(_INDEX.value) else None
  if not store and not _CHECKPOINT.value:
    raise ValueError(f'--checkpoint is needed for a new index: {_STEPS["index"]}.')
  if store and alone and len(indexing.place(store, listed)[0]) > len(store.folders):
    raise ValueError(
      f'{_INDEX.value} is the index of {store.shown_folders}, not of {folder}; name another '
      'one for this folder: --index=...'
    )
  report = indexing.update(
    _load(store),
    listed,
    _INDEX.value,
    cutting=_cutting(),
    keep_tokens=_KEEP_TOKENS.value,
    num_workers=_WORKERS.value,
    timeout_s=_TIMEOUT_S.value,
    retry=_RETRY.value,
  )
  size = sum(x.stat().st_size for x in pathlib.Path(_INDEX.value).rglob('*.lance') if x.is_file())
  clips = max(report['clips'], 1)
  print(
    f'{report["indexed"]} of {report["videos"]} videos are indexed as '
    f'{report["clips"]} clips, {size / clips / 1e3:.1f} kB a clip; '
    f'{report["done_in_this_run"]} were decoded now, '
    f'{len(report["dropped"])} dropped that are gone.'
  )
  for entry in report['passed_over']:
    print(f'  passed over {entry["file"]}: {entry["reason"]}')
  for problem in report['problems']:
    detail = f' ({printable(problem["detail"])})' if problem['detail'] else ''
    kept = f', {problem["clips"]} clips kept' if problem['clips'] else ''
    print(f'  {problem["video"]}: {problem["reason"]}{detail}{kept}')
  print(f'Written: {_INDEX.value} in {time.monotonic() - start:.1f} s.')


def query(*texts):
  """Prints the best clips for each text, and writes a page with them."""
  from alpro_jax import files
  from alpro_jax.evaluation import familiarity, page
  from alpro_jax.search import gallery, querying
  from alpro_jax.search.store import Store

  store = Store.open(_INDEX.value)
  clips = store.counts()[1]
  encoder = _load(store, reads_frames=False)
  if not (_FAST.value or encoder.trained.knows_matching):
    print('By similarity: this checkpoint was not trained to match.')
  rerank_k = 0 if _FAST.value else _RERANK_K.value
  found = querying.search(encoder, store, texts, top=_TOP.value, rerank_k=rerank_k)
  below = f' below {store.shown_folders}' if len(store.folders) > 1 else ''
  _say_if_unknown(encoder)
  for one in found:
    print(
      f'{one.text}   ({clips} clips{below}, {one.read} read by the fusion encoder, '
      f'{one.seconds:.2f} s)'
    )
    _say_far(one.far)
    for number, hit in enumerate(one.hits, 1):
      honest = one.calibrated and not (one.far or hit.far)
      match = '' if hit.match is None else f'match {familiarity.show(hit.match, honest)}   '
      span = f'{page.format_time(hit.start)} - {page.format_time(hit.end)}'
      print(
        f'  {number:>3}  {span:>17}   {match}similarity '
        f'{hit.similarity:5.2f}   {store.shown(hit.name)}'
      )
      _say_far(hit.far)
  beside = 'gallery.html' if '://' in store.folder else f'{store.folder}/gallery.html'
  path = pathlib.Path(_OUTPUT.value or beside)
  files.write_text(path, gallery.render(store, found, copy_all=_COPY_CLIPS.value))
  print(f'Written: {path}')


def serve():
  """Serves the page, until SIGTERM or Ctrl-C."""
  import ipaddress
  import secrets
  import webbrowser
  from concurrent import futures

  from alpro_jax.search.store import Store

  try:
    from alpro_jax.search import server
  except ImportError as error:
    raise ValueError(f'`serve` needs {error.name}; pip install "alpro_jax[serve]".') from error
  host, token = _HOST.value, _TOKEN.value
  token = secrets.token_urlsafe(24) if token == 'new' else token
  try:
    alone = host == 'localhost' or ipaddress.ip_address(host).is_loopback
  except ValueError as error:
    raise ValueError(f'--host={host} is no address, as 127.0.0.1 or 0.0.0.0.') from error
  if token and len(token) < 16 or not (alone or token):
    raise ValueError(
      f'--host={host} is seen by others and needs a --token, 16 characters or more; '
      '--token=new makes one.'
      if not token
      else '--token must have 16 characters or more; --token=new makes one.'
    )
  store = Store.open(_INDEX.value)
  listening = server.bind(host, _PORT.value)
  service = server.Service(store)
  port = listening.getsockname()[1]
  hosts = server.hosts_of(host, port) if alone else frozenset()
  link = f'?token={token}' if token else ''
  address = f'http://{f"[{host}]" if ":" in host else host}:{port}/{link}'
  print(address, flush=True)
  running = server.make_server(server.make_app(service, hosts=hosts, token=token))

  def load():
    try:
      encoder = _load(store, reads_frames=False)
      answering = _load(None, _ANSWERS.value, reads_frames=False) if _ANSWERS.value else None
      if answering and not answering.trained.answers_questions:
        raise ValueError(
          f'--answers={_ANSWERS.value} was trained for {answering.trained.config.task!r} and '
          'answers no questions; pass a checkpoint of question answering.'
        )
      service.begin(encoder, answering)
    except BaseException:
      running.should_exit = True
      raise
    if _OPEN.value:
      webbrowser.open(address)

  with futures.ThreadPoolExecutor(1) as pool:
    loading = pool.submit(load)  # While it listens: that takes seconds.
    running.run(sockets=[listening])
    service.close()
    loading.result()


def ask(video, *questions):
  """Answers questions about a video."""
  from alpro_jax.data.cut import decode
  from alpro_jax.evaluation import page
  from alpro_jax.search import indexing

  if not os.path.isfile(video):
    raise FileNotFoundError(f'{video} is not a file.')
  encoder = _load(None)
  cutting = indexing.choose_cutting(encoder, None, _cutting())
  (cut,) = decode([(video, None)], cutting, timeout_s=_TIMEOUT_S.value)
  if not cut.clips:
    raise ValueError(f'{video} gives no clip: {cut.reason} {cut.detail}')
  if cut.reason:
    print(f'{video}: {cut.reason} ({printable(cut.detail)})', file=sys.stderr)
  _say_if_unknown(encoder)
  for question in questions:
    whole, each = encoder.ask(cut, question)
    print(question)
    for answers in each if len(each) > 1 else ():
      span = f'{page.format_time(answers.start)} - {page.format_time(answers.stop)}'
      print(
        f'  {span:>17}   '
        + ', '.join(
          f'{printable(text)} {answers.show(share).strip()}' for text, share in answers.top
        )
      )
      _say_far(answers.far)
    print(
      f'  over {len(each)} clips, ' if len(each) > 1 else '  in all, ',
      f'0:00 - {page.format_time(whole.stop)}',
      sep='',
    )
    for text, share in whole.top:
      print(f'    {whole.show(share)}  {printable(text)}')
    _say_far(whole.far)


def _say_if_unknown(encoder):
  """Says that nothing can be marked and no percentages are shown, and why."""
  from alpro_jax.evaluation import familiarity

  if not encoder.trained.familiarity:
    print(f'Note: {familiarity.NO_SUMMARY}')


def _say_far(reason):
  """Marks what the line above is about."""
  if reason:
    print(f'       ! far from what the model was trained on: {printable(reason)}')


def embed():
  """Writes the vectors for other tools."""
  from alpro_jax.search import exchange
  from alpro_jax.search.store import Store

  if not _OUTPUT.value:
    raise ValueError(f'--output is needed, as in: {_STEPS["embed"]}.')
  store = Store.open(_INDEX.value)
  count = exchange.write_vectors(_OUTPUT.value, store)
  print(f'Written: {_OUTPUT.value}, {count} vectors of {store.about["vector"]}.')


def merge(*parts):
  """Joins indexes of parts of the same folders."""
  from alpro_jax.search import indexing
  from alpro_jax.search.store import Store

  opened = [Store.open(part) for part in parts]
  with indexing.locked(_INDEX.value):
    if not Store.exists(_INDEX.value):
      Store.create(_INDEX.value, opened[0].about)
    store = Store.open(_INDEX.value)
    for part in opened:
      indexing.check_same(store, part.about)
      if part.folders != store.folders:
        raise ValueError(
          f'{part.folder} is of {part.shown_folders}, {store.folder} of '
          f'{store.shown_folders}; parts are of the same folders.'
        )
      store.merge(part)
    store.tidy()
  videos, clips = store.counts()
  print(f'Written: {_INDEX.value}, {clips} clips of {videos} videos.')


def convert():
  """Converts an index of an earlier version to LanceDB."""
  from alpro_jax.search import earlier, indexing

  with indexing.locked(_INDEX.value):
    videos, clips = earlier.convert(_INDEX.value).counts()
  print(
    f'Written: {_INDEX.value}, {clips} clips of {videos} videos. {earlier.EARLIER} is no '
    'longer read; remove it when you like.'
  )


def _part():
  """--part as two numbers."""
  try:
    number, count = map(int, _PART.value.split('/'))
  except ValueError as error:
    raise ValueError(f'--part={_PART.value} must be two numbers, as 2/5.') from error
  return number, count


def _load(store, checkpoint='', *, reads_frames=True):
  """Returns the Encoder of a checkpoint, of --checkpoint, or of an index."""
  from alpro_jax import api
  from alpro_jax.evaluation import trained
  from alpro_jax.evaluation.encoder import Encoder
  from alpro_jax.search import indexing

  checkpoint = checkpoint or _CHECKPOINT.value
  if not checkpoint:
    checkpoint = store.about['checkpoint']['path']
    if not os.path.isdir(checkpoint):
      raise FileNotFoundError(
        f'{_INDEX.value} was made with {checkpoint}, which is not there; '
        'pass where it is now as --checkpoint.'
      )
  command.start(reads_frames=reads_frames)
  model = trained.load(api.find(checkpoint), tokenizer=_TOKENIZER.value)
  if store:
    indexing.check_checkpoint(store, indexing.made_with(model))
  return Encoder(model, batch_size=_BATCH_SIZE.value)


def _cutting():
  """What the flags say, None where they say nothing."""
  return {
    'span': _spans(),
    'stride': _STRIDE.value,
    'fps': _FPS.value,
    'short_side': _SHORT_SIDE.value,
  }


def _spans():
  """--span as numbers."""
  try:
    return _SPAN.value and tuple(map(float, _SPAN.value))
  except ValueError as error:
    raise ValueError(f'--span={",".join(_SPAN.value)} must be numbers, as 3,10.') from error


if __name__ == '__main__':
  command.run(main, words=True, in_buckets=True)
