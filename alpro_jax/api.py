"""A trained model, to be asked from Python.

import alpro_jax

model = alpro_jax.load('runs/pretrain')
videos = model.embed_videos(['a.mp4', 'b.mp4'])
texts = model.embed_texts(['a red disc drifts left'])
model.similarity(texts, videos)                      # float32[1, 2]
model.match(texts, videos)                           # float32[1, 2]
model.index('clips', 'clips.index').search('a red disc', k=5)
alpro_jax.open_index('clips.index').search('a red disc', k=5)  # From then on.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from alpro_jax import files
from alpro_jax.data import tokens, video
from alpro_jax.data.progress import Progress
from alpro_jax.encoded import Choice, Skipped, Texts, Videos
from alpro_jax.evaluation import explain, familiarity, trained
from alpro_jax.evaluation.encoder import Encoder
from alpro_jax.evaluation.scorer import Scorer, VideoFeatures, fill_batch
from alpro_jax.models import prompter
from alpro_jax.search import indexing
from alpro_jax.search.index import Index
from alpro_jax.search.store import Store
from alpro_jax.serving import alpro_loader, hub
from alpro_jax.serving.places import SHIPPED as SHIPPED
from alpro_jax.serving.places import download, find


def load(source: str | os.PathLike, *, tokenizer: str = '', averaged: bool = True) -> 'Model':
  """Loads a trained model.

  Args:
    source: what `find` takes, or 'user/name' on the Hugging Face Hub.
    tokenizer: its file, for a checkpoint of an earlier version whose tokenizer moved.
    averaged: False takes the weights of the last step of a run that averaged them
      (train.ema_decay).

  Raises:
    FileNotFoundError: if there is nothing by that name.
    ValueError: if what is there is damaged, or no model, or holds no other weights.
    ImportError: if a Hub name is given without huggingface_hub.
  """
  found = find(download(source))
  return Model(trained.load(found, tokenizer=tokenizer, averaged=averaged))


def open_index(folder: str | os.PathLike, *, model: str | os.PathLike = '') -> Index:
  """Opens an index of videos that `Model.index` or launch/search.py made.

  Args:
    folder: of the index.
    model: what `load` takes; '' is where the model lay that made the index.

  Raises:
    FileNotFoundError: if there is no index, or no model.
    ValueError: if either is damaged, or they do not belong together.
    ImportError: without LanceDB.
  """
  store = Store.open(folder)
  source = model or store.about['checkpoint']['path']
  if not model and not os.path.isdir(source):
    raise FileNotFoundError(
      f'{folder} was made with {source}, which is not there; pass where it is now as `model`.'
    )
  return Index(Encoder(load(source).trained), folder)


class Model:
  """A trained model on all devices of this machine.

  Videos are paths, one array uint8[B, F, H, W, 3], or a list of arrays uint8[F, H, W,
  3], RGB, whose F frames are all frames of each: T of them are chosen evenly, cut and
  scaled as in evaluation. Whatever takes texts or videos also takes what `embed_texts`
  and `embed_videos` returned.

  Attributes:
    trained: parameters, options, tokenizer.
    batch_size: videos, or texts, that are encoded at once.
    pairs_per_call: pairs that the fusion encoder reads at once.
    progress: whether long work writes lines about itself to stderr.
  """

  def __init__(
    self,
    trained: trained.TrainedModel,
    *,
    batch_size: int = 16,
    pairs_per_call: int = 64,
    progress: bool = True,
  ):
    size = trained.mesh.size
    self.trained, self.progress = trained, progress
    self.batch_size = -(-batch_size // size) * size
    self.pairs_per_call, self._warned = pairs_per_call, False
    self._scorer = Scorer.of(trained, batch_size=batch_size, pairs_per_call=pairs_per_call)

  def __repr__(self) -> str:
    origin, shown = self.trained.origin, self.trained.config.data
    where = f'{origin.path}, step {origin.step}' if origin else 'in training'
    return (
      f'<alpro_jax.Model {self.trained.config.task} from {where}: {shown.frames} frames of '
      f'{shown.image_size} pixels, texts of {shown.max_text_tokens} tokens>'
    )

  @property
  def answer_names(self) -> tuple[str, ...]:
    """The answers that it chooses from; () unless it answers questions."""
    return self.trained.answers

  @property
  def entity_names(self) -> tuple[str, ...]:
    """The entities that it was pre-trained with; () without any."""
    return tuple((self.trained.meta or {}).get('entities', ()))

  def embed_videos(self, videos, *, skip_unreadable: bool = False) -> Videos:
    """Encodes videos, `batch_size` at a time.

    Warns of those that are far from what the model was trained on.

    Args:
      videos: B of them.
      skip_unreadable: leave out what cannot be read, and say so in `skipped`.

    Raises:
      FileNotFoundError: if there is no such file.
      UnreadableVideo: for the first that cannot be read.
      ValueError: if there is none, or an array is no video.
    """
    if isinstance(videos, Videos):
      return videos
    if isinstance(videos, (str, bytes, os.PathLike)):
      raise ValueError(f'expected a list of videos, got the one path {videos!r}; put it into [].')
    if not len(videos):
      raise ValueError('there are no videos; expected at least one.')
    names: list[str] = []
    skipped: list[Skipped] = []
    encoded = []
    progress = self._count(len(videos), 'videos')
    for batch in self._read(videos, names, skipped, skip_unreadable, progress):
      encoded.append(self._encode(batch))
    if not encoded:
      raise ValueError(
        f'none of {len(videos)} videos can be read; the first: {skipped[0].name}: '
        f'{skipped[0].reason}'
      )
    found = VideoFeatures(*(np.concatenate(x) for x in zip(*encoded, strict=True)))
    known, far = self.trained.familiarity, None
    if known:
      far = known.far_videos(found)
      familiarity.warn_of_far(far, names, 'videos')
    return Videos(tuple(names), found.feature, found.tokens, tuple(skipped), far)

  def embed_texts(self, texts: Sequence[str] | Texts) -> Texts:
    """Encodes texts; warns of those that are too long, or far from those of training.

    Raises:
      ValueError: if there is none.
    """
    if isinstance(texts, Texts):
      return texts
    if isinstance(texts, str):
      raise ValueError(f'expected a list of texts, got the text {texts!r}; put it into [].')
    texts = list(texts)
    most = self.trained.config.data.max_text_tokens
    tokens.warn_of_cut(self.trained.tokenizer, texts, most, 'not read')
    found = self._scorer.embed_texts(texts)
    known, far = self.trained.familiarity, None
    if known:
      far = known.far_texts(self.trained.tokenizer, texts, most, found)
      familiarity.warn_of_far(far, texts, 'texts')
    return Texts(tuple(texts), found.feature, found.tokens, found.mask, far)

  def similarity(self, texts, videos) -> np.ndarray:
    """Returns float32[A, B], the cosine of every text and video, -1 to 1.

    Raises:
      ValueError: if the model has no contrastive features.
    """
    self._check_features()
    texts, videos = self.embed_texts(texts), self.embed_videos(videos)
    return texts.feature @ videos.feature.T

  def match(self, texts, videos) -> np.ndarray:
    """Returns float32[A, B], the fusion encoder's probability that both belong together.

    Calibrated on held-out data if the model has a summary of its training set: of a
    text that is as likely the video's own as the nearest other.

    Raises:
      ValueError: if the model was not trained to match.
    """
    if why := self.trained.why_no_matching:
      raise ValueError(f'this model cannot match: {why}; use similarity, or load another.')
    texts, videos = self.embed_texts(texts), self.embed_videos(videos)
    margin = self._scorer.matching(texts, videos).margin
    self._warn_of_no_summary()
    return familiarity.match_probability(self.trained.familiarity, margin)[0]

  def answer(self, questions: Sequence[str], videos, *, top: int = 5) -> list[list[Choice]]:
    """Answers each question about the video beside it, the likeliest answers first.

    Args:
      questions: B of them, or one for all videos.
      videos: B of them.
      top: answers to return of each.

    Raises:
      ValueError: if the model does not answer questions, or numbers differ.
    """
    if not self.trained.answers_questions:
      raise ValueError(
        f'this model was trained for {self.trained.config.task!r} and answers no questions; '
        'load a checkpoint of question answering.'
      )
    videos = self.embed_videos(videos)
    questions = [questions] if isinstance(questions, str) else list(questions)
    if len(questions) == 1:
      questions *= len(videos)
    if len(questions) != len(videos):
      raise ValueError(
        f'{len(questions)} questions for {len(videos)} videos; give one for each, or one for all.'
      )
    index = {text: i for i, text in enumerate(dict.fromkeys(questions))}
    texts = self.embed_texts(list(index))
    logits = self._scorer.answers(
      texts,
      videos,
      np.array([index[text] for text in questions]),
      np.arange(len(videos)),
      self._count(len(questions), 'questions'),
    )
    self._warn_of_no_summary()
    known, far = self.trained.familiarity, None
    if videos.far is not None and texts.far is not None:
      far = [videos.far[i] or texts.far[index[text]] for i, text in enumerate(questions)]
    return familiarity.choices(
      logits, self.answer_names, top, known.answer_temperature if known else None, far
    )

  def entities(
    self, videos, *, names: Sequence[str] | None = None, top: int = 5
  ) -> list[list[Choice]]:
    """Names what videos show by prompts such as "A video of a dog." (paper section 3.2).

    Args:
      videos: B of them.
      names: to choose from; None is those of pre-training.
      top: entities to return of each.

    Raises:
      ValueError: without names, or if the model has no contrastive features.
    """
    names, own = self.entity_names if names is None else tuple(names), names is None
    if not names:
      raise ValueError('this model was trained without entities; pass names to choose from.')
    self._check_features()
    videos = self.embed_videos(videos)
    templates = self.trained.entity_templates
    logits = self._scorer.entities(videos.feature, names, templates)
    self._warn_of_no_summary()
    known, far = self.trained.familiarity, videos.far
    if far is not None and not own:  # Names of one's own may be unknown words.
      prompts = self.embed_texts(prompter.fill_template(templates[0], names))
      found = zip(prompts.texts, prompts.far or (), strict=True)
      strange = next((f'{text!r}: {why}' for text, why in found if why), '')
      far = tuple(reason or strange for reason in far)
    # The temperature was fitted to the choice among those of pre-training.
    return familiarity.choices(
      logits, names, top, known.entity_temperature if known and own else None, far
    )

  def explain(
    self, text: str, video, *, page: str | os.PathLike = '', steps: int = 16
  ) -> explain.Explanation:
    """Says what the model goes by in one video: places of frames, word by word.

    Of a model whose fusion encoder was never trained, that is about the similarity.

    Args:
      text: a caption, or a question for a model that answers.
      video: a path, or uint8[F, H, W, 3].
      page: HTML file to write with heat maps; '' writes none.
      steps: of integrated gradients; more is finer.

    Raises:
      ValueError: if no word is known.
    """
    name = os.path.basename(video) if isinstance(video, (str, os.PathLike)) else 'a video'
    found = explain.explain(self.trained, name, self._prepare(video), None, text, steps=steps)
    if page:
      files.write_text(page, explain.render(found))
    return found

  def index(
    self,
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    span: float | Sequence[float] | None = None,
    stride: float | None = None,
    fps: float | None = None,
    skip_unreadable: bool = False,
    retry: bool = False,
  ) -> Index:
    """Makes an index of all videos below a folder, to be searched by text; needs LanceDB.

    Only new and changed videos are decoded: the same call extends an index, and goes
    on with one that was interrupted.

    Args:
      folder: of videos.
      output: folder of the index, or where it is to be made.
      span, stride, fps: see data.cut.Cutting; None is as before, or 10, the longest
        span, 8. Several spans make clips of each length.
      skip_unreadable: leave out what cannot be read, and say so in `skipped`.
      retry: try again what could not be read last time.

    Raises:
      FileNotFoundError: if there is no such folder.
      UnreadableVideo: for the first that cannot be read.
      ValueError: if it holds no video, the index was made otherwise or by another model,
        or the model has no features to search by.
    """
    encoder = Encoder(self.trained, batch_size=self.batch_size)
    indexing.update(
      encoder,
      indexing.list_videos(folder),
      output,
      cutting={'span': span, 'stride': stride, 'fps': fps},
      skip_unreadable=skip_unreadable,
      retry=retry,
      log=None if self.progress else lambda line: None,
    )
    return Index(encoder, output)

  def save_pretrained(
    self,
    folder: str | os.PathLike,
    *,
    licence: str = '',
    figures: Sequence[str | os.PathLike] = (),
    notes: str = '',
  ) -> None:
    """Writes the model as a folder of the Hugging Face Hub's layout, which `load` takes.

    Args:
      folder: to make.
      licence: of the model, as the Hub calls it ('apache-2.0'); '' states none.
      figures: card.json files that launch/evaluate.py wrote about this checkpoint.
      notes: Markdown for the end of the model card.

    Raises:
      FileExistsError: if the folder is there and not empty.
      ValueError: if the model is still in training, or figures are another's.
    """
    hub.write(self.trained, folder, licence=licence, figures=figures, notes=notes)

  def _warn_of_no_summary(self) -> None:
    """Says once that probabilities are the model's own."""
    if not self.trained.familiarity and not self._warned:
      logging.warning(familiarity.NO_SUMMARY)
      self._warned = True

  def _check_features(self) -> None:
    if not self.trained.model.config.embed_size:
      raise ValueError(
        f'this model (task {self.trained.config.task!r}) has no contrastive features; '
        'load one of pre-training or retrieval.'
      )

  def _encode(self, pixels: list[np.ndarray]) -> VideoFeatures:
    """Encodes up to batch_size clips."""
    batch = fill_batch(np.stack(pixels), 0, self.batch_size, len(pixels))
    return self._scorer.embed_videos([batch], len(pixels), look=True)

  def _read(self, videos, names, skipped, skip_unreadable, progress) -> Iterator[list]:
    """Yields lists of clips uint8[T, S, S, 3]; fills names and skipped."""
    clips = []
    for position, one in enumerate(videos):
      name = os.fspath(one) if isinstance(one, (str, os.PathLike)) else str(position)
      try:
        clips.append(self._prepare(one))
        names.append(name)
      except (video.UnreadableVideo, OSError) as error:
        if not skip_unreadable:
          raise
        skipped.append(Skipped(name, position, str(error)))
      progress.add()
      if len(clips) == self.batch_size:
        yield clips
        clips = []
    progress.close()
    if clips:
      yield clips

  def _prepare(self, one) -> np.ndarray:
    """A path, or uint8[F, H, W, 3] -> uint8[T, S, S, 3]."""
    shown = self.trained.config.data
    if isinstance(one, (str, os.PathLike)):
      if not os.path.isfile(one):
        raise FileNotFoundError(f'{os.fspath(one)} is not a file.')
      frames = np.stack(video.read_evenly(os.fspath(one), shown.frames))
    else:
      frames = np.asarray(one)
      if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(
          f'a video is {frames.dtype}{list(frames.shape)}; expected a path or uint8[F, H, W, 3], '
          'RGB in 0..255.'
        )
      frames = frames[alpro_loader.choose_frames(len(frames), shown.frames)]
    return alpro_loader.crop_and_scale(
      frames, image_size=shown.image_size, resize=shown.resize, resize_mode=shown.resize_mode
    )

  def _count(self, total, unit):
    """Lines about long work, or none."""
    return Progress(total, unit, log=None if self.progress else lambda line: None)
