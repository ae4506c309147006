"""The card: says everything, stands alone, escapes; JSON and page agree."""

import dataclasses
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest

import alpro_jax
from alpro_jax import metrics, sharding
from alpro_jax.data.annotations import Question
from alpro_jax.evaluation import card, facts, question_answering
from alpro_jax.evaluation.question_answering import AnswerResult, AskedQuestion
from alpro_jax.evaluation.retrieval import Scoring, Tradeoff
from alpro_jax.evaluation.split import EvaluationResult
from alpro_jax.evaluation.trained import CheckpointInfo, TrainedModel
from alpro_jax.models.alpro import Alpro, AlproConfig
from configs import common
from tests import small_sets
from tests.test_cases import searched
from tests.test_report import readable

EVIL = '"><script>alert(1)</script>'


def trained(task='pretrain'):
  config = common.get_config('tiny')
  config.task = task
  config.data.update(
    {
      'frames': 2,
      'image_size': 16,
      'resize': 16,
      'sources': (common.source('sets/train', style=EVIL),),
    }
  )
  model = Alpro(AlproConfig.from_dict(config.model.to_dict()))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return TrainedModel(
    model,
    {'x': np.zeros((3, 4))},
    config,
    small_sets.Letters(),
    mesh,
    (),
    CheckpointInfo('/runs/my run/checkpoints/700', 700, 'abc123'),
  )


def search(share=1.0, **scoring):
  """Seven texts; the video of the last one comes last."""
  scores = np.diag(np.arange(9.0, 2, -1)).astype(np.float32)
  scores[6] = np.arange(7, 0, -1)
  found = searched(scores)
  figures = metrics.retrieval_metrics(scores, found.pairs)
  figures |= {f'similarity/{k}': v for k, v in figures.items()}
  found = dataclasses.replace(
    found,
    texts=(EVIL, *found.texts[1:]),
    metrics=figures,
    intervals={'t2v_r1': (70.0, 95.0)},
    seconds={'pairs': 1.0},
    scoring=Scoring(**scoring),
    cost={'pairs': 49.0 * share, 'share': share},
  )
  return EvaluationResult(trained(), small_sets.MemorySet(7), '', found)


def answers():
  questions = [
    [Question(f'{EVIL} what?', 'up', 'what')],
    [Question('who?', '<b>', 'who'), Question('what?', 'up', 'odd')],
  ]
  asked = tuple(AskedQuestion(i, *q) for i, of in enumerate(questions) for q in of)
  known, chosen = ('left', 'up'), ['up', 'left', 'left']
  logits = np.array([[0, 2], [3, 0], [1, 0]], np.float32)
  found = AnswerResult(
    asked, known, logits, *question_answering.figures(asked, chosen, known), {'videos': 1.0}
  )
  prepared = small_sets.MemorySet(2, questions=questions)
  return EvaluationResult(trained('question_answering'), prepared, '', found)


def alone(text):
  """The page as text, after checking that it needs nothing else."""
  page = readable(text)
  assert 'script' not in [tag for tag, _ in page.tags]
  assert EVIL in page.text
  for tag, attributes in page.tags:
    assert tag != 'link'
    source = attributes.get('src', attributes.get('href'))
    assert source is None or source.startswith('data:image/png;base64,')
  assert 'http' not in text
  return page.text.replace('\N{NO-BREAK SPACE}', ' ')


def test_card_of_a_search(tmp_path):
  content = card.make(search(), recall=[Tradeoff(1, 50.0, 50.0, 50.0, 50.0, 7, 1 / 7, 2e9)])
  path = card.write(content, tmp_path / 'new')
  text = alone(path.read_text())
  for part in (
    'Text-video retrieval on set, train',
    'my run at step 700',
    '85.7 %',
    '70.0 to 95.0',
    'rank 7',
    '6.mp4',
    'abc123',
    'pessimistic: a wrong one of equal score',
    'all pairs',
    '2 of 8, evenly spaced',
    '16 x 16 pixels',
    '14.3 %',
    'Recall against cost',
  ):
    assert part in text, part
  stored = json.loads((tmp_path / 'new' / 'card.json').read_text())
  assert stored['task'] == 'text-video retrieval'
  assert stored['data']['digest'] == 'set'
  assert stored['items'] == {'videos': 7, 'texts': 7, 'pairs': 7}
  # The text of 27 letters fits; with less room it is the one that is cut.
  assert stored['text'] == {'max_tokens': 30, 'cut': 0, 'of': 7}
  assert stored['scoring']['rule'] == 'matching'
  assert stored['scoring']['k'] == 'all pairs'
  assert stored['summary'].endswith(
    'All pairs are scored by the probability of a match that the fusion '
    'encoder gives, as in the paper.'
  )
  assert f'</h1><p>{stored["summary"]}</p>' in path.read_text()
  assert stored['checkpoint'] == {
    'path': '/runs/my run/checkpoints/700',
    'step': 700,
    'digest': 'abc123',
  }
  assert stored['code'] == facts.code_version()
  assert stored['run']['parameters'] == 12
  found = stored['metrics']
  assert found['t2v_r1'] == {'value': pytest.approx(600 / 7), 'low': 70, 'high': 95}
  assert found['t2v_r1_chance'] == {'value': pytest.approx(100 / 7)}
  assert 't2v_r1_low' not in found
  assert stored['recall_against_cost'][0]['pairs'] == 7
  rows = (tmp_path / 'new' / 'ranks.jsonl').read_text().splitlines()
  assert [json.loads(row)['rank'] for row in rows] == [1] * 6 + [7]
  assert json.loads(rows[6]) == {'video': '6.mp4', 'text': search().found.texts[6], 'rank': 7}
  assert not (tmp_path / 'new' / 'answers.jsonl').exists()


def test_cases_of_a_search_mark_the_right_one():
  content = card.make(search())
  assert [case.rank for case in content.best] == [1] * 6
  (worst,) = content.worst
  # The first five, and behind them its own.
  assert [clip.right for clip in worst.clips] == [False] * 5 + [True]
  assert worst.clips[-1].label == '7'
  assert worst.clips[0].label == '1 · match 1.00'
  records, _ = small_sets.who(np.stack([c.frames for c in worst.clips]))
  assert records.tolist() == [0, 1, 2, 3, 4, 6]
  # Behind the candidates a score is no logit of a match.
  content = card.make(search(rerank_k=2))
  assert [clip.label for clip in content.worst[0].clips[1:3]] == ['2 · match 1.00', '3 · 5.000']


def test_card_of_answers(tmp_path):
  content = card.make(answers())
  path = card.write(content, tmp_path)
  text = alone(path.read_text())
  for part in (
    'Question answering on set, train',
    '33.3 %',
    'which is not in the list of answers',
    'True answer: <b>',
    'asked 3 questions about 2 videos',
    '1.mp4',
  ):
    assert part in text, part
  assert 'about 2 videos, 66.7 % of them with an answer that it can' in text
  # Kinds of the paper come first, then others.
  assert text.index('what100.0') < text.index('who0.0') < text.index('odd0.0')
  stored = json.loads((tmp_path / 'card.json').read_text())
  assert stored['items'] == {'videos': 2, 'questions': 3}
  assert stored['scoring']['answers'] == 2
  assert set(stored['metrics']['accuracy_what']) == {'value', 'low', 'high'}
  rows = (tmp_path / 'answers.jsonl').read_text().splitlines()
  assert [json.loads(row)['right'] for row in rows] == [True, False, False]
  assert json.loads(rows[1])['answer'] == '<b>'


def test_spellings_of_an_answer_are_one_in_the_card():
  asked = (AskedQuestion(0, 'what?', 'Two  Red', 'what'), AskedQuestion(1, 'who?', 'x', 'who'))
  known = ('up', 'two red', 'UP')
  logits = np.array([[0, 9, 0], [9, 0, 0]], np.float32)
  found = AnswerResult(
    asked, known, logits, *question_answering.figures(asked, ['two red', 'up'], known), {}
  )
  prepared = small_sets.MemorySet(2, questions=[[Question(*question[1:])] for question in asked])
  content = card.make(EvaluationResult(trained('question_answering'), prepared, '', found))
  (right,), (wrong,) = content.best, content.worst
  assert right.known and not wrong.known
  text = card.render(content)
  assert '<tr class="true"><td>two red</td>' in text
  assert 'Answer: <em class="true">Two  Red</em>' in text
  assert content.content['scoring']['listed_twice'] == [('up', 'UP')]
  assert '<td>up, UP</td>' in text


def test_a_card_counts_the_texts_that_are_cut(tmp_path):
  asked = search()
  asked.trained.config.data.max_text_tokens = 10
  path = card.write(card.make(asked), tmp_path)
  assert json.loads((tmp_path / 'card.json').read_text())['text'] == {
    'max_tokens': 10,
    'cut': 1,
    'of': 7,
  }
  assert 'at most 10 tokens: 1 of 7 texts are longer and lose' in alone(path.read_text())
  asked = answers()
  asked.trained.config.data.max_text_tokens = 7
  assert card.make(asked).content['text'] == {'max_tokens': 7, 'cut': 1, 'of': 3}


def test_figures_must_be_finite(tmp_path):
  evaluated = answers()
  evaluated.found.metrics['accuracy'] = float('nan')
  with pytest.raises(ValueError, match='not finite'):
    card.write(card.make(evaluated), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which('git'), reason='there is no git')
def test_code_version(monkeypatch, tmp_path):
  monkeypatch.setattr(facts, 'ROOT', tmp_path)
  monkeypatch.setattr(alpro_jax, '__version__', '7.8.9')
  (tmp_path / 'alpro_jax').mkdir()
  assert facts.code_version() == '7.8.9'

  def git(*command):
    subprocess.run(
      ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *command],
      cwd=tmp_path,
      check=True,
      capture_output=True,
    )

  git('init')
  (tmp_path / 'alpro_jax' / 'a.py').write_text('1')
  git('add', '.')
  git('commit', '-m', 'x')
  clean = facts.code_version()
  assert len(clean) == 40
  (tmp_path / 'notes.txt').write_text('not code')
  assert facts.code_version() == clean
  (tmp_path / 'alpro_jax' / 'a.py').write_text('2')
  assert facts.code_version() == f'{clean}+changes'


def test_a_search_by_similarity_says_so():
  evaluated = search(rule='similarity')
  text = alone(card.render(card.make(evaluated)))
  assert 'no pair is read by the fusion encoder' in text
  assert '· match' not in text


def first_line(evaluated):
  """The paragraph below the title, and what card.json says there."""
  content = card.make(evaluated)
  line = alone(card.render(content)).split('set, train')[2]
  stored = json.loads(json.dumps(content.content))
  assert line.startswith(stored['summary'])
  return stored


def test_the_first_line_says_if_not_all_pairs_were_scored():
  stored = first_line(search(share=0.14137, rerank_k=128))
  assert stored['summary'] == (
    'my run at step 700, searching for 7 texts among 7 videos, and the other '
    'way round. Only 14.1 % of the pairs, the 128 nearest by similarity of '
    'every text and of every video, are scored by the probability of a match '
    'that the fusion encoder gives; the others follow by similarity. The '
    'paper scores all pairs.'
  )
  assert stored['scoring']['k'] == 128
  # As many candidates as there are is all pairs.
  stored = first_line(search(rerank_k=128))
  assert 'All pairs are scored' in stored['summary']


def test_the_first_line_says_why_matching_does_not_decide():
  stored = first_line(search(rule='similarity', instead='it was not trained'))
  assert stored['summary'].endswith(
    'All pairs are scored by the similarity of the contrastive features '
    'alone, for it was not trained.'
  )
  assert stored['scoring']['instead_of_matching'] == 'it was not trained'


def test_both_rules_of_video_to_text_have_a_name():
  evaluated = search()
  found = evaluated.found
  assert 'captions grouped' not in card.render(card.make(evaluated))
  pairs = np.array([[t, min(t, 5)] for t in range(7)])
  figures = metrics.retrieval_metrics(np.eye(7), pairs)
  figures |= {f'similarity/{k}': v for k, v in figures.items()}
  found = dataclasses.replace(found, pairs=pairs, metrics=figures)
  text = alone(card.render(card.make(evaluated._replace(found=found))))
  for part in ('the same, captions grouped, R@5', 'the rule of CLIP4Clip'):
    assert part in text
