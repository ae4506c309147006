"""The card of an evaluation: what was measured, on what, and exactly how.

  card.json   for programs: facts, and every metric with its 95 % interval
  card.html   for people: the same, with the best and the worst cases; opens
              from a file, without a server or network

of a model that answers questions also answers.jsonl, a line per question.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import pathlib
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from alpro_jax import files
from alpro_jax.data import tokens
from alpro_jax.data.answers import canonical, equal_entries
from alpro_jax.evaluation import cases, page, question_answering
from alpro_jax.evaluation.page import Table
from alpro_jax.evaluation.page import escape as _
from alpro_jax.evaluation.question_answering import Answered
from alpro_jax.evaluation.retrieval import Retrieval, Tradeoff
from alpro_jax.evaluation.split import Evaluated

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What git must know of for the commit alone to say how something was made.
_CODE = ('alpro_jax', 'configs', 'launch')
_SHOWN = 6  # Best cases, and as many worst ones.
_TOP = 5  # Videos of a search.
# Questions for each wording from which one answer per wording says something.
_RECURS = 5

_FRAMES = {
    'uniform': 'evenly spaced, from the first on',
    'nlvl_uniform': 'evenly spaced, from the first on',
    'nlvl_rand': 'one drawn from each of equal parts, always the same draw',
    'rand': 'drawn at random, always the same draw',
    'headtail': 'half of them drawn from each half, always the same draw',
}
_RULES = {
    'matching': 'the probability of a match that the fusion encoder gives',
    'matching+similarity':
        "the fusion encoder's logit of a match plus the similarity of the "
        'contrastive features',
    'similarity': 'the similarity of the contrastive features',
}
_TIES = {
    'pessimistic': 'a wrong one of equal score counts as better',
    'optimistic': 'a wrong one of equal score counts as worse',
    'expected': 'the mean over all orders of those of equal score',
}


class Shown(NamedTuple):
  """A clip on the page: uint8[T, H, W, 3], a line, whether it is the one."""

  frames: np.ndarray
  label: str
  note: str
  right: bool


class SearchCase(NamedTuple):
  """A text, the rank of its own video, and the videos found, best first."""

  text: str
  rank: int
  clips: Sequence[Shown]


class AnswerCase(NamedTuple):
  """A question about a clip, and the answers given to it.

  Attributes:
    question, answer, kind: as they were asked.
    known: whether the true answer is in the list.
    frames: uint8[T, H, W, 3].
    video: its name.
    top: (answer, probability), most probable first.
  """

  question: str
  answer: str
  kind: str
  known: bool
  frames: np.ndarray
  video: str
  top: Sequence[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Card:
  """Everything a card says.

  Attributes:
    title: of the page.
    facts: how the figures were obtained; JSON.
    run: options of the training in short, by name.
    metrics: all of them.
    intervals: 95 % intervals, of those that have one.
    best, worst: cases to show.
    recall: against the pairs that the fusion encoder reads, () without.
    answers: a row for every question, see question_answering.rows.
    warning: shown in a box on top, '' for none.
  """

  title: str
  facts: Mapping[str, Any]
  run: Mapping[str, Any]
  metrics: Mapping[str, float]
  intervals: Mapping[str, tuple[float, float]]
  best: Sequence[SearchCase | AnswerCase] = ()
  worst: Sequence[SearchCase | AnswerCase] = ()
  recall: Sequence[Tradeoff] = ()
  answers: Sequence[Mapping[str, Any]] = ()
  warning: str = ''


def make(
    evaluated: Evaluated, *, recall: Sequence[Tradeoff] = (), warning: str = '',
) -> Card:
  """Returns the card of an evaluation.

  Args:
    evaluated: see split.evaluate.
    recall: see split.recall_against_cost.
    warning: to show on top.
  """
  trained, prepared, style, found = evaluated
  answers = isinstance(found, Answered)
  name = pathlib.Path(prepared.path).name
  what = 'Question answering' if answers else 'Text-video retrieval'
  choose = _answer_cases if answers else _search_cases
  best, worst = choose(evaluated)
  rows = question_answering.rows(
      found, [record.video for record in prepared.metadata()]
  ) if answers else ()
  return Card(
      title=f'{what} on {name}, {prepared.split}' + (
          f', {style}' if style else ''),
      facts=_facts(evaluated), run=_run(trained), metrics=found.metrics,
      intervals=found.intervals, best=best, worst=worst,
      recall=recall, answers=rows, warning=warning)


def write(card: Card, folder) -> pathlib.Path:
  """Writes card.json and card.html, and answers.jsonl if there are any.

  Returns:
    the path of the page.

  Raises:
    ValueError: if a metric is not a finite number.
  """
  content = to_json(card)
  folder = pathlib.Path(folder)
  files.write_text(folder / 'card.json', content)
  files.write_text(folder / 'card.html', render(card))
  if card.answers:
    files.write_text(folder / 'answers.jsonl', ''.join(
        json.dumps(row, ensure_ascii=False) + '\n' for row in card.answers))
  return folder / 'card.html'


def to_json(card: Card) -> str:
  """Returns the card as JSON, without the cases.

  A metric is {'value': v} or {'value': v, 'low': l, 'high': h}.
  """
  bad = {k: v for k, v in card.metrics.items() if not math.isfinite(v)}
  if bad:
    raise ValueError(
        f'figures {bad} are not finite; leave out what was not measured.')
  figures = {}
  for name in sorted(card.metrics):
    # The ends of intervals stand beside what they belong to.
    if name.endswith(('_low', '_high')):
      continue
    figures[name] = {'value': float(card.metrics[name])}
    if name in card.intervals:
      low, high = map(float, card.intervals[name])
      figures[name] |= {'low': low, 'high': high}
  content = {'title': card.title, 'summary': summary(card), **card.facts,
             'metrics': figures}
  if card.recall:
    content['recall_against_cost'] = [row._asdict() for row in card.recall]
  content['run'] = card.run
  return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def code_version() -> str:
  """Returns the commit of this code, with '+changes' if it differs from it.

  Where it is in no repository of its own, the version of the package.
  """

  def git(*command):
    return subprocess.run(
        ['git', '-C', str(ROOT), *command], capture_output=True, text=True,
        check=True).stdout.strip()

  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).samefile(ROOT):
      changes = git('status', '--porcelain', '--', *_CODE)
      return git('rev-parse', 'HEAD') + ('+changes' if changes else '')
  except (OSError, subprocess.CalledProcessError):
    pass  # No git, or no repository.
  try:
    return importlib.metadata.version('alpro_jax')
  except importlib.metadata.PackageNotFoundError:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    return project['project']['version']


# --- What is said -----------------------------------------------------------


def _facts(evaluated):
  trained, prepared, style, found = evaluated
  data, origin = trained.config.data, trained.origin
  records = prepared.metadata()
  stored = [record.frames for record in records]
  items = {'videos': len(records)}
  if isinstance(found, Answered):
    task = 'question answering'
    texts = [asked.text for asked in found.questions]
    items['questions'] = len(found.questions)
    scoring = {
        'rule': 'most probable of the training answers',
        'answers': len(found.answers),
        'answers_digest': hashlib.sha256(
            '\n'.join(found.answers).encode()).hexdigest(),
        'right': 'the true answer, whatever its case, white space and form '
                 'of Unicode; one that is not among the training answers '
                 'counts as wrong',
        'listed_twice': equal_entries(found.answers),
        'ties': 'of equal logits the answer that is more frequent in training',
    }
  else:
    task = 'text-video retrieval'
    texts = found.texts
    items |= {'texts': len(found.texts), 'pairs': len(found.pairs)}
    scoring = {
        'pairs': pairs_scored(found),
        'rule': found.scoring.rule,
        'instead_of_matching': found.scoring.instead,
        'k': found.scoring.rerank_k or 'all pairs',
        'ties': found.scoring.ties,
        'dual_softmax': found.scoring.dual_softmax,
        'cost': {k: float(v) for k, v in found.cost.items()},
    }
  return {
      'task': task,
      'trained_for': trained.config.task,
      'data': {
          'path': prepared.path, 'split': prepared.split, 'style': style,
          'digest': prepared.digest},
      'items': items,
      'frames': {
          'per_clip': data.frames, 'chosen': data.eval_sampling,
          'stored': [min(stored, default=0), max(stored, default=0)]},
      'image': {
          'side': data.image_size, 'resize': data.resize,
          'resize_mode': data.resize_mode, 'crop': 'centre'},
      'text': {
          'max_tokens': data.max_text_tokens,
          'cut': tokens.count_cut(
              trained.tokenizer, texts, data.max_text_tokens),
          'of': len(texts)},
      'scoring': scoring,
      'intervals': '95 %, bootstrap over videos',
      'checkpoint': origin._asdict() if origin else None,
      'code': code_version(),
      'devices': f'{trained.mesh.size} x '
                 f'{trained.mesh.devices.flat[0].device_kind}',
      'compute': trained.model.config.dtype,
      'seconds': {k: round(v, 2) for k, v in found.seconds.items()},
      'date': datetime.datetime.now(datetime.UTC).isoformat(
          timespec='seconds'),
  }


def _run(trained):
  """Options of the training in short: {dotted name: value}."""
  config, model = trained.config, trained.model.config
  size = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
  run = {
      'task': config.task, 'seed': config.seed, 'parameters': size,
      'model.video': f'{model.video.image_size} px, {model.video.frames} '
                     f'frames, patch {model.video.patch_size}, '
                     f'{model.video.attention} attention, '
                     f'{model.video.depth} layers of {model.video.width}',
      'model.text': f'{model.text.depth} layers of {model.text.width}, the '
                    f'fusion encoder from layer {model.text.fusion_layer}',
      'data.sources': ', '.join(
          f'{source["path"]}/{source["split"]}' + (
              f' ({source["style"]})' if source['style'] else '')
          for source in config.data.sources),
      'data.batch_size': config.data.batch_size,
  }
  weights = {
      name: config.loss[name] for name in ('vtc', 'vtm', 'mlm', 'pem')}
  if trained.answers_questions:
    weights = {}
  elif config.task == 'prompter':
    weights = {'vtc': weights['vtc']}
  run |= {f'loss.{name}': value for name, value in weights.items()}
  run |= {
      f'optimizer.{name}': config.optimizer[name]
      for name in ('learning_rate', 'schedule', 'warmup_steps', 'weight_decay')}
  run |= {f'train.{name}': config.train[name]
          for name in ('steps', 'init_from')}
  return run


# --- Cases ------------------------------------------------------------------


def _search_cases(evaluated):
  trained, prepared, _, found = evaluated
  own = {}  # Text -> its videos.
  for text, video in found.pairs:
    own.setdefault(int(text), set()).add(int(video))
  plans = []
  for group in cases.choose_searches(found, _SHOWN):
    plan = []
    for case in group:
      shown = [(place, int(video), float(score)) for place, (video, score) in
               enumerate(zip(found.top[case.text], found.top_scores[case.text],
                             strict=True), 1)][:_TOP]
      if case.video not in [video for _, video, _ in shown]:
        shown.append((case.rank, case.video, None))
      plan.append((case, shown))
    plans.append(plan)
  wanted = [video for plan in plans for _, shown in plan
            for _, video, _ in shown]
  frames = _read(trained, prepared, wanted)
  records = prepared.metadata()

  def clip(text, place, video, score):
    label = str(place)
    # Behind the candidates the order is that of similarity.
    read = place <= (found.scoring.rerank_k or place)
    if score is not None and found.scoring.rule == 'matching' and read:
      label += f' · {100 / (1 + math.exp(-score)):.1f} % match'
    elif score is not None:
      label += f' · {score:.3f}'
    return Shown(
        frames[video], label, records[video].video, video in own[text])

  return [
      [SearchCase(found.texts[case.text], case.rank,
                  [clip(case.text, *each) for each in shown])
       for case, shown in plan]
      for plan in plans]


def _answer_cases(evaluated):
  trained, prepared, _, found = evaluated
  chosen = cases.choose_answers(found, _SHOWN)
  frames = _read(trained, prepared, [
      found.questions[i].record for group in chosen for i in group])
  records, known = prepared.metadata(), set(map(canonical, found.answers))
  return [
      [AnswerCase(asked.text, asked.answer, asked.kind,
                  canonical(asked.answer) in known, frames[asked.record],
                  records[asked.record].video, found.top(i))
       for i in group for asked in [found.questions[i]]]
      for group in chosen]


def _read(trained, prepared, records):
  clips = cases.read_clips(trained.config.data, prepared, records)
  return {record: page.thumbnails(clip, side=84)
          for record, clip in zip(records, clips, strict=True)}


# --- The page ---------------------------------------------------------------


def render(card: Card) -> str:
  """Returns the page."""
  answers = 'accuracy' in card.metrics
  warning = f'<p class="warning">{_(card.warning)}</p>' if card.warning else ''
  if answers:
    figures = _answer_figures(card)
    right = 'Answered right, most surely. The bars are the probabilities of ' \
            'the first five answers; the true one is green.'
    wrong = 'Answered wrong, most surely.'
    draw = _draw_answer
  else:
    figures = _search_figures(card)
    right = 'Texts that find their video with the clearest lead. The first ' \
            'five videos, the best first; those of the text are green.'
    wrong = 'Texts whose video comes latest. Where it is not among the first ' \
            'five it stands behind them.'
    draw = _draw_search
  return page.document(card.title, warning + f'<p>{_(summary(card))}</p>', [
      ('Figures', figures),
      ('Recall against cost', _recall(card.recall)),
      ('Best', _draw_cases(card.best, draw, right)),
      ('Worst', _draw_cases(card.worst, draw, wrong)),
      ('How it was measured', page.facts(_measured(card))),
      ('The run', page.facts(
          (name, _plain(value)) for name, value in card.run.items())),
  ])


def summary(card: Card) -> str:
  """The first line of a card: who was asked what, and how it was scored."""
  items, origin = card.facts['items'], card.facts['checkpoint']
  who = 'A model in training'
  if origin:
    who = f'{_run_name(origin["path"])} at step {origin["step"]:,}'
  if 'questions' in items:
    return (f'{who}, asked {items["questions"]:,} questions about '
            f'{items["videos"]:,} videos, {card.metrics["in_list"]:.1f} % of '
            'them with an answer that it can give.')
  return (f'{who}, searching for {items["texts"]:,} texts among '
          f'{items["videos"]:,} videos, and the other way round. '
          f'{card.facts["scoring"]["pairs"]}')


def pairs_scored(found: Retrieval) -> str:
  """How the pairs of a search were scored, in a sentence."""
  scoring, share = found.scoring, found.cost.get('share', 1)
  if not scoring.reads:
    why = f', for {scoring.instead}' if scoring.instead else ''
    return f'All pairs are scored by {_RULES[scoring.rule]} alone{why}.'
  if share == 1:
    return f'All pairs are scored by {_RULES[scoring.rule]}, as in the paper.'
  return (
      f'Only {100 * share:.3g} % of the pairs, the {scoring.rerank_k} nearest '
      'by similarity of every text and of every video, are scored by '
      f'{_RULES[scoring.rule]}; the others follow by similarity. The paper '
      'scores all pairs.')


def _run_name(path):
  """runs/a/checkpoints/300 -> a."""
  parts = [part for part in pathlib.Path(path).parts
           if part != 'checkpoints' and not part.isdigit()]
  return parts[-1] if parts else path


def _search_figures(card):
  found, rows = card.metrics, []
  grouped = 'v2t_grouped_r1' in found
  for direction, name in (
      ('t2v', 'text to video'), ('v2t', 'video to text'),
      *([('v2t_grouped', 'the same, captions grouped')] if grouped else [])):
    for k in (1, 5, 10):
      nothing = None
      if direction == 't2v':
        nothing = min(k * found['t2v_r1_chance'], 100)
      rows.append(_row(card, f'{direction}_r{k}', f'{name}, R@{k}', nothing))
  lines = [
      'R@k is the share of queries whose own is among the first k, in the '
      f'order by {_RULES[card.facts["scoring"]["rule"]]}.']
  if grouped:
    lines.append(
        'Of the captions of a video, the best counts. “Video to text” ranks it '
        'among all texts of other videos, each for itself; “captions grouped” '
        'counts of each other video its best caption alone, which is the rule '
        'of CLIP4Clip (v2t_grouped in the files).')
  ceiling = found.get('t2v_r1_ceiling', 100.0)
  if ceiling < 100:
    lines.append(
        'Some texts describe several videos, of which only one can come '
        f'first: {ceiling:.1f} % is the most that R@1 can be.')
  for direction, name in (('t2v', 'text to video'), ('v2t', 'video to text')):
    better = found.get(f'{direction}_r1_optimistic')
    if better is not None:
      lines.append(
          f'Some scores are equal. They count against the model; counted for '
          f'it, R@1 {name} would be {better:.1f} %.')
  if 'dual_softmax/t2v_r1' in found:
    lines.append(
        'Dual softmax uses the whole test set for every query: its figures '
        'do not compare with others.')
  legend = ('<p class="legend">In the bars, <i class="nothing"></i> is chance '
            'and <u></u> is the 95 % interval.</p>')
  table = _bars(['', '', '', '95 % interval'], rows)
  return f'<p>{_(" ".join(lines))}</p>{legend}{table}{_orders(card)}'


def _orders(card):
  """All orders of the same search side by side: ranks, and other scores."""
  rule = card.facts['scoring']['rule']
  orders = [(rule, '')] + [
      (name.replace('_', ' '), f'{name}/')
      for name in dict.fromkeys(
          key.split('/', 1)[0] for key in card.metrics if '/' in key)
      if name != rule]
  columns = [(f'{direction}_{figure}', label) for direction, arrow in (
      ('t2v', 'text → video'), ('v2t', 'video → text'))
      for figure, label in (
          ('r1', f'{arrow}, R@1'), ('r5', 'R@5'), ('r10', 'R@10'),
          ('median_rank', 'median'), ('mean_rank', 'mean rank'))]
  rows = [
      (name, *(card.metrics.get(prefix + key) for key, _ in columns))
      for name, prefix in orders]
  return '<div class="orders">' + page.table(
      Table(['order', *(label for _, label in columns)], rows)) + '</div>'


def recall_table(rows: Sequence[Tradeoff]) -> Table:
  """The columns of recall against cost, for people."""
  return Table(
      ['k', 'text → video, R@1', 'R@5', 'R@10', 'video → text, R@1',
       'pairs read', 'of all', 'GFLOP'],
      [(str(row.k or 'all pairs'), row.t2v_r1, row.t2v_r5, row.t2v_r10,
        row.v2t_r1, row.pairs, f'{100 * row.share:.3g} %',
        f'{row.flops / 1e9:,.4g}') for row in rows])


def _recall(rows):
  return rows and (
      '<p>The fusion encoder reads, for every text and every video, the k '
      'nearest by similarity. Operations are counted for the whole '
      'evaluation, with the encoding of all texts and videos.</p>'
      + page.table(recall_table(rows)))


def _answer_figures(card):
  found, items = card.metrics, card.facts['items']
  constant = page.format_figure(found['most_frequent'])
  first = page.figure(
      page.format_figure(found['accuracy']), 'Questions answered right',
      page.bar(found['accuracy'], interval=card.intervals.get('accuracy'),
               marks=[('nothing', found['most_frequent'])], wide=True)
      + f'<p class="goal">{_(_interval(card, "accuracy"))}, always the most '
      f'frequent training answer {_(constant)}</p><p>' + _(
          f'Of {items["questions"]:,} questions, each counted once. '
          f'{found["in_list"]:.1f} % of the true answers are among the '
          f'{card.facts["scoring"]["answers"]:,} that the model chooses from, '
          'and no more can be right. The best single answer for each kind of '
          f'question would be right for {found["best_per_kind"]:.1f} %.')
      + '</p>')
  kinds = question_answering.list_kinds(
      name.removeprefix('accuracy_') for name in found
      if name.startswith('accuracy_'))
  shown = {'best_per_kind': 'one answer', 'in_list': 'in list'}
  if found['questions'] >= _RECURS * found['wordings']:
    shown = {'best_per_wording': 'one per wording'} | shown
  rows = [
      _row(card, f'accuracy_{kind}', kind, found[f'best_per_kind_{kind}'])
      + tuple(page.format_figure(found[f'{name}_{kind}']) for name in shown)
      + (f'{found[f"questions_{kind}"]:,.0f}',)
      for kind in kinds]
  return (
      '<p class="legend">In the bars, <i class="nothing"></i> is what a single '
      'answer would give and <u></u> is the 95 % interval.</p>' + first
      + _bars(['kind', '', 'right', '95 % interval', *shown.values(),
               'questions'], rows))


def _row(card, name, label, nothing):
  """(label, bar as HTML, value, interval) of a metric."""
  bar = page.bar(card.metrics[name], interval=card.intervals.get(name),
                 marks=[('nothing', nothing)])
  return (label, bar, page.format_figure(card.metrics[name]),
          _interval(card, name, ''))


def _interval(card, name, before='95 % interval '):
  if name not in card.intervals:
    return ''
  low, high = card.intervals[name]
  return f'{before}{low:.1f} to {high:.1f}'


def _bars(columns, rows):
  """A table whose second column is HTML and whose others are text."""
  head = ''.join(
      f'<th{" class=number" if i > 1 else ""}>{_(name)}</th>'
      for i, name in enumerate(columns))
  lines = ''.join(
      f'<tr><td>{_(label)}</td><td>{bar}</td>' + ''.join(
          f'<td class="number">{_(cell)}</td>' for cell in cells) + '</tr>'
      for label, bar, *cells in rows)
  return f'<table class="bars figures"><tr>{head}</tr>{lines}</table>'


def _measured(card):
  """The facts in words: (what, how)."""
  facts = card.facts
  data, frames, image, text = (
      facts[name] for name in ('data', 'frames', 'image', 'text'))
  low, high = frames['stored']
  stored = f'{low}' if low == high else f'{low} to {high}'
  shape = {'squash': 'squashed to', 'short_side': 'short side scaled to'}
  rows = [
      ('task', facts['task']), ('trained for', facts['trained_for']),
      ('data set', data['path']), ('split', data['split']),
      ('only of style', data['style']),
      ('digest of the split', data['digest']),
      *((name, f'{count:,}') for name, count in facts['items'].items()),
      ('frames', f'{frames["per_clip"]} of {stored}, '
       f'{_FRAMES[frames["chosen"]]} ({frames["chosen"]})'),
      ('image', f'{image["side"]} x {image["side"]} pixels: '
       f'{shape[image["resize_mode"]]} {image["resize"]}, '
       f'{image["crop"]} crop'),
      ('text', f'at most {text["max_tokens"]} tokens: {text["cut"]:,} of '
       f'{text["of"]:,} texts are longer and lose their end'),
  ]
  scoring = facts['scoring']
  if 'answers' in scoring:
    rows += [
        ('scoring rule', f'{scoring["rule"]} ({scoring["answers"]:,})'),
        ('digest of the answers', scoring['answers_digest']),
        ('right is', scoring['right']),
        ('listed in several spellings, any of which counts',
         '; '.join(map(', '.join, scoring['listed_twice']))),
        ('tie rule', scoring['ties'])]
  else:
    cost, k = scoring['cost'], scoring['k']
    read = f'{k}' if isinstance(k, str) else (
        f'the {k} nearest by similarity, of every text and every video')
    if cost.get('pairs'):
      read += (f': {cost["pairs"]:,.0f} pairs, '
               f'{100 * cost["share"]:.3g} % of all')
    rows += [
        ('scoring rule', f'{scoring["rule"]}: {_RULES[scoring["rule"]]}'),
        ('k', read if scoring['rule'] != 'similarity' else
         'no pair is read by the fusion encoder'),
        ('tie rule', f'{scoring["ties"]}: {_TIES[scoring["ties"]]}'),
        ('dual softmax', 'reported beside' if scoring['dual_softmax'] else '')]
  origin = facts['checkpoint'] or {}
  return rows + [
      ('intervals', facts['intervals']),
      ('checkpoint', origin.get('path', 'in training')),
      ('step', f'{origin["step"]:,}' if origin else ''),
      ('digest of the checkpoint', origin.get('digest', '')),
      ('code', facts['code']),
      ('computed', f'on {facts["devices"]}, in {facts["compute"]}, '
       f'{sum(facts["seconds"].values()):.0f} s, {facts["date"]}'),
  ]


def _draw_cases(shown, draw, introduction):
  return shown and f'<p>{_(introduction)}</p>' + ''.join(map(draw, shown))


def _draw_search(case):
  clips = ''.join(
      f'<figure{" class=right" if clip.right else ""}>'
      f'{page.image(page.film_strip(clip.frames))}<figcaption>'
      f'<b>{_(clip.label)}</b> {_(clip.note)}</figcaption></figure>'
      for clip in case.clips)
  mark = 'good' if case.rank == 1 else 'bad'
  return (f'<div class="case"><h3>“{_(case.text)}”<span class="{mark}">rank '
          f'{case.rank:,}</span></h3><div class="clips">{clips}</div></div>')


def _draw_answer(case):
  def same(answer):
    return canonical(answer) == canonical(case.answer)

  bars = ''.join(
      f'<tr{" class=true" if same(answer) else ""}><td>{_(answer)}</td><td>'
      f'{page.bar(100 * share)}</td>'
      f'<td class="number">{100 * share:.1f} %</td></tr>'
      for answer, share in case.top)
  right = same(case.top[0][0])
  missing = '' if case.known else ', which is not in the list of answers'
  said = (f'Answer: <em class="true">{_(case.answer)}</em>.' if right else
          f'True answer: <em class="true">{_(case.answer)}</em>{missing}. '
          f'Given: <em class="false">{_(case.top[0][0])}</em>.')
  mark = 'good' if right else 'bad'
  return (
      f'<div class="case"><h3>{_(case.question)}<span class="{mark}">'
      f'{_(case.kind)}</span></h3><div class="asked"><figure>'
      f'{page.image(page.film_strip(case.frames))}<figcaption>'
      f'{_(case.video)}</figcaption></figure><div><table class="bars">{bars}'
      f'</table><p>{said}</p></div></div></div>')


def _plain(value):
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}' if value >= 10000 else str(value)
  return f'{value:g}' if isinstance(value, float) else str(value)
