"""The Python API: loading from everywhere, and what a model can be asked."""

import json
import os
import shutil
import types

import jax
import numpy as np
import pytest

import alpro_jax
from alpro_jax import api
from alpro_jax.data import video
from alpro_jax.evaluation import familiarity
from alpro_jax.evaluation.encoder import Encoder
from alpro_jax.search.store import REPORT, Store
from alpro_jax.serving import hub, layouts
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.state import TrainState
from tests import small_videos, test_export


def run_of(path, task):
  """The workdir of a run that saved a model of random weights."""
  made, own, _ = test_export.make(path, task)
  store = checkpoints.Checkpoints(path / 'run')
  state = TrainState(np.int32(7), made.params, {'mu': made.params})
  store.save(state, identity.describe(made.config, own, made.tokenizer, []))
  store.close()
  return path / 'run'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return run_of(tmp_path_factory.mktemp('pretrained'), 'pretrain')


@pytest.fixture(scope='module')
def model(run):
  return alpro_jax.load(run)


@pytest.fixture(scope='module')
def answering(tmp_path_factory):
  return alpro_jax.load(run_of(tmp_path_factory.mktemp('answering'), 'question_answering'))


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  folder = tmp_path_factory.mktemp('videos')
  return [
    str(small_videos.write_video(folder / f'{n}.mp4', colours=[(n * 80, 255 - n * 80, 60)] * 8))
    for n in range(3)
  ]


TEXTS = ['a dog runs', 'disc']


def test_a_path_is_read_as_its_frames_are(model, paths):
  frames = [np.stack([frame for frame, _ in video.iterate_frames(path)]) for path in paths]
  read, given = model.embed_videos(paths), model.embed_videos(frames)
  np.testing.assert_array_equal(read.feature, given.feature)
  np.testing.assert_array_equal(read.tokens, given.tokens)
  assert read.names == tuple(paths) and given.names == ('0', '1', '2')
  assert np.asarray(read).shape == (3, 16) and len(read) == 3
  np.testing.assert_allclose(np.linalg.norm(read, axis=1), 1, rtol=1e-5)


def test_a_long_video_is_read_twice_and_alike(model, paths, monkeypatch):
  whole = model.embed_videos(paths[:1])
  monkeypatch.setattr(video, '_HELD_BYTES', 48 * 32 * 3 * 2)
  np.testing.assert_array_equal(model.embed_videos(paths[:1]).feature, whole.feature)


def test_the_batch_does_not_matter(model, paths):
  one = alpro_jax.Model(model.trained, batch_size=1)
  assert one.batch_size == model.trained.mesh.size
  many = model.embed_videos(3 * paths * model.batch_size)
  np.testing.assert_allclose(many.feature[:3], one.embed_videos(paths).feature, atol=1e-6)
  np.testing.assert_array_equal(many.feature[:3], many.feature[-3:])


def test_similarity_is_the_cosine_and_match_a_probability(model, paths):
  texts, videos = model.embed_texts(TEXTS), model.embed_videos(paths)
  similarity = model.similarity(texts, videos)
  np.testing.assert_allclose(similarity, texts.feature @ videos.feature.T, atol=1e-6)
  np.testing.assert_array_equal(model.similarity(TEXTS, paths), similarity)
  match = model.match(texts, videos)
  assert match.shape == (2, 3) and ((match > 0) & (match < 1)).all()
  swapped = model.match(TEXTS[::-1], paths[::-1])
  np.testing.assert_allclose(swapped[::-1, ::-1], match, atol=1e-6)


def test_entities_are_named_by_prompts(model, paths):
  assert model.entity_names == ('disc', 'ring', 'cross')
  found = model.entities(paths, top=2)
  assert [len(row) for row in found] == [2, 2, 2]
  assert all(row[0].probability >= row[1].probability for row in found)
  (whole,) = model.entities(paths[:1], names=['dog', 'ring'])
  assert sum(choice.probability for choice in whole) == pytest.approx(1)


def test_questions_are_answered_about_the_video_beside_them(answering, paths):
  one = answering.answer('what is it ?', paths)
  assert [len(row) for row in one] == [2, 2, 2] and answering.answer_names == ('disc', 'ring')
  mixed = answering.answer(['what is it ?', 'is it a dog ?', 'what is it ?'], paths)
  assert [row[0].name for row in mixed[::2]] == [row[0].name for row in one[::2]]
  for a, b in zip(mixed[0], one[0], strict=True):
    assert a.probability == pytest.approx(b.probability, abs=1e-6)
  with pytest.raises(ValueError, match='2 questions for 3 videos'):
    answering.answer(['what', 'is'], paths)


def test_what_a_model_cannot_do_is_said(model, answering, paths):
  with pytest.raises(ValueError, match='answers no questions'):
    model.answer('what', paths)
  with pytest.raises(ValueError, match='cannot match'):
    answering.match(TEXTS, paths)
  with pytest.raises(ValueError, match='without entities'):
    answering.entities(paths)
  with pytest.raises(ValueError, match='no contrastive features'):
    answering.entities(paths, names=['disc'])
  with pytest.raises(ValueError, match='no contrastive features'):
    answering.similarity(TEXTS, paths)


def test_mistakes_are_said(model, paths, tmp_path):
  with pytest.raises(ValueError, match=r'one path .* put it into \[\]'):
    model.embed_videos(paths[0])
  with pytest.raises(ValueError, match=r'got the text .* put it into \[\]'):
    model.embed_texts('a dog')
  with pytest.raises(ValueError, match='no videos'):
    model.embed_videos([])
  with pytest.raises(ValueError, match=r'a video is float32\[2, 8, 8, 3\]'):
    model.embed_videos([np.zeros((2, 8, 8, 3), np.float32)])
  with pytest.raises(FileNotFoundError):
    model.embed_videos([str(tmp_path / 'none.mp4')])


def test_unreadable_videos_are_left_out_on_request(model, paths, tmp_path):
  broken = tmp_path / 'broken.mp4'
  broken.write_bytes(b'\0' * 999)
  mixed = [paths[0], str(broken), str(tmp_path / 'none.mp4'), paths[1]]
  with pytest.raises(video.UnreadableVideo):
    model.embed_videos(mixed)
  found = model.embed_videos(mixed, skip_unreadable=True)
  assert found.names == (paths[0], paths[1])
  assert [(one.position, one.name) for one in found.skipped] == [(1, mixed[1]), (2, mixed[2])]
  assert 'unreadable' in found.skipped[0].reason
  with pytest.raises(ValueError, match='none of 1 videos can be read'):
    model.embed_videos(mixed[1:2], skip_unreadable=True)


def test_a_saved_folder_is_the_same_model_elsewhere(model, paths, tmp_path):
  card = {
    'checkpoint': model.trained.origin._asdict(),
    'title': 'Text-video retrieval on clips, test',
    'summary': 'Searching.',
    'metrics': {'t2v_r1': {'value': 50.0, 'low': 40.04, 'high': 60.0}, 'videos': {'value': 9}},
  }
  (tmp_path / 'card.json').write_text(json.dumps(card))
  model.save_pretrained(
    tmp_path / 'saved', licence='mit', figures=[tmp_path / 'card.json'], notes='Shapes alone.'
  )
  moved = tmp_path / 'elsewhere' / 'moved'
  shutil.copytree(tmp_path / 'saved', moved)
  again = alpro_jax.load(moved)
  np.testing.assert_array_equal(again.similarity(TEXTS, paths), model.similarity(TEXTS, paths))
  np.testing.assert_array_equal(again.match(TEXTS, paths), model.match(TEXTS, paths))
  assert again.entity_names == model.entity_names
  assert again.trained.model.config == model.trained.model.config
  assert (
    str(tmp_path.parent) not in (moved / layouts.CONFIG).read_text()
  )  # No path of this machine.
  text = (moved / hub.CARD).read_text()
  for part in ('license: mit', '# saved', '| t2v_r1 | 50.0 | 40.0 to 60.0 |', 'Shapes alone.'):
    assert part in text
  assert '| videos |' not in text
  card['checkpoint']['digest'] = 'of another'
  (tmp_path / 'card.json').write_text(json.dumps(card))
  with pytest.raises(ValueError, match='evaluate this one'):
    model.save_pretrained(tmp_path / 'other', figures=[tmp_path / 'card.json'])
  assert not (tmp_path / 'other').exists()
  with pytest.raises(FileExistsError):
    model.save_pretrained(moved)


def test_a_model_whose_tokenizer_moved_is_saved_with_it(tmp_path):
  made = run_of(tmp_path, 'pretrain')
  moved = (tmp_path / 'vocab.txt').rename(tmp_path / 'moved.txt')
  model = alpro_jax.load(made, tokenizer=str(moved))
  moved.write_text('changed since')
  model.save_pretrained(tmp_path / 'saved')
  again = alpro_jax.load(tmp_path / 'saved')
  np.testing.assert_array_equal(again.embed_texts(TEXTS).feature, model.embed_texts(TEXTS).feature)


def test_a_video_is_explained_word_by_word(model, paths, tmp_path):
  found = model.explain('a dog', paths[0], page=tmp_path / 'page.html', steps=1)
  assert [word.text for word in found.words] == ['a', 'dog'] and found.evidence.shape[:2] == (2, 2)
  page = (tmp_path / 'page.html').read_text()
  assert '0.mp4, 2 frames' in page
  prompter = model.trained._replace(config=model.trained.config.copy_and_resolve_references())
  prompter.config.task = 'prompter'
  # Without a trained fusion encoder, by the similarity.
  found = alpro_jax.Model(prompter).explain('a dog', paths[0], steps=1)
  assert found.target == 'similarity' and found.evidence.shape[:2] == (2, 2)


@pytest.fixture
def folder(paths, tmp_path):
  """Two of the videos, and room for more."""
  (tmp_path / 'videos' / 'below').mkdir(parents=True)
  shutil.copy(paths[0], tmp_path / 'videos')
  shutil.copy(paths[1], tmp_path / 'videos' / 'below')
  return tmp_path / 'videos'


def test_a_folder_is_indexed_and_searched(
  model, paths, folder, tmp_path, capfd, caplog, monkeypatch
):
  index = model.index(folder, tmp_path / 'index', fps=0)
  assert len(index) == 2 and not index.skipped and '2 videos below' in repr(index)
  assert '2/2 videos' in capfd.readouterr().err and familiarity.NO_SUMMARY in caplog.text
  found = index.search('a dog', k=5, page=tmp_path / 'page.html')
  assert sorted(hit.path for hit in found) == [
    str(folder / '0.mp4'),
    str(folder / 'below' / '1.mp4'),
  ]
  assert found[0].score >= found[1].score and len(index.search('a dog', k=1)) == 1
  assert (tmp_path / 'page.html').read_text().count('<figure') == 2
  # What stands beside a hit is what the model says of the file, but for its JPEG.
  for hit in found:
    assert hit.start == 0 and 0 < hit.end < 2
    assert hit.score == pytest.approx(model.match(['a dog'], [hit.path])[0, 0], abs=0.02)
    assert hit.similarity == pytest.approx(model.similarity(['a dog'], [hit.path])[0, 0], abs=0.05)
  (fast, *_) = index.search('a dog', rerank_k=0)
  assert fast.score == fast.similarity and fast.match is None
  # The same call extends it, and decodes what is new alone.
  shutil.copy(paths[2], folder)
  capfd.readouterr()
  quiet = alpro_jax.Model(model.trained, progress=False)
  assert len(quiet.index(folder, tmp_path / 'index')) == 3
  assert capfd.readouterr().err == ''
  report = json.loads((tmp_path / 'index' / REPORT).read_text())
  assert (report['done_in_this_run'], report['already_there']) == (1, 2)
  # From then on it knows its model.
  monkeypatch.setattr(api, 'load', lambda source: model)
  assert len(alpro_jax.open_index(tmp_path / 'index')) == 3
  store = Store.open(tmp_path / 'index')
  store.change(checkpoint=store.about['checkpoint'] | {'path': 'nowhere'})
  with pytest.raises(FileNotFoundError, match='which is not there; pass where it is now'):
    alpro_jax.open_index(tmp_path / 'index')
  again = alpro_jax.open_index(tmp_path / 'index', model='there')
  assert len(again.search('a dog', k=5, rerank_k=0).by_video) == 3
  (tmp_path / 'more').mkdir()
  shutil.copy(paths[0], tmp_path / 'more' / 'b.mp4')
  again.add(tmp_path / 'more')
  assert len(again) == 4 and 'more' in repr(again)


def test_texts_are_encoded_together_in_few_sizes(model, monkeypatch):
  encoder, calls = Encoder(model.trained), []
  call = encoder.scorer._call

  def text(params, *ids):
    calls.append(len(ids[0]))
    return call.text(params, *ids)

  monkeypatch.setattr(encoder.scorer, '_call', types.SimpleNamespace(text=text))
  texts, devices = [f'a dog {"and a cat " * n}' for n in range(18)], model.trained.mesh.size
  for count, sizes in ((1, [1]), (2, [4]), (7, [16]), (18, [16, 16])):
    calls.clear()
    found = encoder.texts(texts[:count])
    assert calls == [-(-size // devices) * devices for size in sizes]
    own = model.embed_texts(texts[:count])
    np.testing.assert_allclose(found.feature, own.feature, atol=1e-5)
    np.testing.assert_allclose(found.tokens, own.tokens, atol=1e-4)


def test_unreadable_videos_of_an_index_are_left_out_on_request(model, folder, tmp_path):
  (folder / 'broken.mp4').write_bytes(b'\0' * 999)
  for _ in range(2):  # The second time from what is stored.
    with pytest.raises(video.UnreadableVideo, match='unreadable: .*broken.mp4 .*skip_unreadable'):
      model.index(folder, tmp_path / 'index')
  (folder / 'gone.mp4').symlink_to('nowhere')
  with pytest.raises(video.UnreadableVideo, match='cannot be looked at: .*gone.mp4'):
    os.remove(folder / 'broken.mp4')
    model.index(folder, tmp_path / 'index')
  (folder / 'broken.mp4').write_bytes(b'\0' * 999)
  index = model.index(folder, tmp_path / 'index', skip_unreadable=True)
  assert len(index) == 2 and [os.path.basename(path) for path in index.skipped] == [
    'broken.mp4',
    'gone.mp4',
  ]
  assert index.skipped[str(folder / 'broken.mp4')].startswith('unreadable: ')


def test_mistakes_about_an_index_are_said(model, answering, folder, tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
    model.index(tmp_path / 'nowhere', tmp_path / 'index')
  with pytest.raises(NotADirectoryError, match='0.mp4 is a file; expected a folder for the index'):
    model.index(folder, folder / '0.mp4')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='no video lies below'):
    model.index(tmp_path / 'empty', tmp_path / 'index')
  with pytest.raises(ValueError, match='no vectors to search by'):
    answering.index(folder, tmp_path / 'index')
  assert not (tmp_path / 'index' / 'index.json').exists()
  index = model.index(folder, tmp_path / 'index')
  with pytest.raises(ValueError, match=r'--span was .10.0., now .1.0.; --stride was 10.0, now 1'):
    model.index(folder, tmp_path / 'index', span=1)
  with pytest.raises(ValueError, match="expected a text and k of at least 1, got ' ' and 5"):
    index.search(' ')
  other = model.trained._replace(
    params=jax.tree.map(lambda x: x + 1, model.trained.params),
    origin=model.trained.origin._replace(digest='d' * 64),
  )
  with pytest.raises(ValueError, match='is another checkpoint'):
    alpro_jax.Model(other).index(folder, tmp_path / 'index')


def test_a_slip_in_a_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs').mkdir()
  huggingface_hub = pytest.importorskip('huggingface_hub')
  monkeypatch.setattr(
    huggingface_hub, 'snapshot_download', lambda name: pytest.fail(f'asked for {name}')
  )
  with pytest.raises(FileNotFoundError, match="there is no model 'runs/typo'"):
    alpro_jax.load('runs/typo')


def test_a_damaged_or_foreign_folder_is_refused(model, tmp_path):
  model.save_pretrained(tmp_path / 'saved')
  content = bytearray((tmp_path / 'saved' / layouts.PARAMS).read_bytes())
  content[-1] ^= 1
  (tmp_path / 'saved' / layouts.PARAMS).write_bytes(content)
  with pytest.raises(ValueError, match='get the folder again'):
    alpro_jax.load(tmp_path / 'saved')
  (tmp_path / 'saved' / layouts.CONFIG).write_text(json.dumps({'model_type': 'clip'}))
  with pytest.raises(ValueError, match='not of alpro_jax'):
    alpro_jax.load(tmp_path / 'saved')


def test_a_name_of_nothing_says_what_is_expected(monkeypatch, tmp_path):
  with pytest.raises(FileNotFoundError, match='expected a folder'):
    alpro_jax.load(tmp_path / 'nothing')
  with pytest.raises(AttributeError, match='no attribute'):
    alpro_jax.nothing  # noqa: B018


def test_the_hub_is_asked_for_a_name_with_a_user(monkeypatch, model, tmp_path):
  import huggingface_hub

  model.save_pretrained(tmp_path / 'cached')
  asked = []

  def download(name):
    asked.append(name)
    if name == 'user/none':
      raise huggingface_hub.errors.LocalEntryNotFoundError('no network\nmore')
    return str(tmp_path / 'cached')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert alpro_jax.load('user/model').entity_names == model.entity_names
  with pytest.raises(FileNotFoundError, match='did not give it: no network$'):
    alpro_jax.load('user/none')
  assert asked == ['user/model', 'user/none']


def test_the_model_that_comes_with_the_package_is_that_of_its_card():
  """`python -m examples.shapes.ship` makes it."""
  model = alpro_jax.load('shapes')
  folder = api.SHIPPED / 'shapes'
  clips = [json.loads(line) for line in (folder / 'clips/captions.jsonl').read_text().splitlines()]
  captions = [clip['caption'] for clip in clips]
  videos = model.embed_videos([folder / 'clips' / clip['video'] for clip in clips])
  # Each caption finds its clip, each clip its caption, by both scores.
  for scores in (model.similarity(captions, videos), model.match(captions, videos)):
    assert scores.argmax(0).tolist() == scores.argmax(1).tolist() == [0, 1, 2]
  assert model.entities(videos)[0][0].name == 'ring' in captions[0]
  listed = (folder / 'entities.txt').read_text().split()
  assert listed == ['bar', 'pole', 'disc', 'ring', 'wall'] == list(model.entity_names)
  text = (folder / hub.CARD).read_text()
  count = sum(leaf.size for leaf in jax.tree.leaves(model.trained.params))
  assert f'{count:,} parameters' in ' '.join(text.split())
  assert f'step {model.trained.origin.step}' in text
  assert model.trained.origin.digest[:12] in text
  assert sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) < 3e6
  assert '"/' not in (folder / layouts.CONFIG).read_text()  # No path of any machine.
