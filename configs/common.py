"""Every option of every run, once, with its default (the paper's).

Run files change values; they never add keys, except for the list of sources.
"""

import ml_collections

from alpro_jax.train import options
from configs import models


def source(path, *, split='train', weight=1.0, style='', from_step=0, until_step=-1):
  """One entry of `data.sources`: a prepared data set that batches come from.

  Args:
    path: folder of a set made by launch/prepare.py.
    split: split of that set.
    weight: chance, relative to the other active sources, that a batch comes
      from here. A batch comes from one source.
    style: use only captions of this style ('' is all captions).
    from_step: first step at which the source is active.
    until_step: first step at which it no longer is (-1: never ends).
  """
  return ml_collections.ConfigDict(
    {
      'path': path,
      'split': split,
      'weight': float(weight),
      'style': style,
      'from_step': from_step,
      'until_step': until_step,
    }
  )


def get_config(model='base'):
  """Returns the defaults with the sizes of a model preset."""
  config = ml_collections.ConfigDict()
  # Or 'prompter', 'retrieval', 'question_answering'.
  config.task = 'pretrain'
  config.seed = 42
  config.model = models.PRESETS[model]()

  config.data = ml_collections.ConfigDict(
    {
      # One prepared set in place of all `sources`, here and in `eval`: what is
      # trained on and what is held out of it says alpro_jax/data/own.py.
      'path': '',
      'sources': (),
      # With `path` '' is the file in the set's folder; so of entities and answers.
      'tokenizer': '',  # A BERT vocab.txt or a SentencePiece .model file.
      # Of a text tower (config.model.text_tower): tower.json, made by launch/convert.py, or a
      # folder of image-text weights.
      'tower_tokenizer': '',
      'text': 'captions',  # Or 'questions'.
      # What an epoch visits once: 'videos', each with one of its texts drawn
      # at random, or 'texts', each with its video.
      'examples': 'videos',
      'answers': '',  # Of questions: a file made by launch/answers.py.
      'batch_size': 256,  # Global, over all devices, before accumulation.
      'max_text_tokens': 30,
      'max_tower_tokens': 77,  # Of the tower where there is a BERT too; 64 for SigLIP.
      'frames': 4,
      # Frames of a batch from a set of stills alone; 0: as many as of clips,
      # all equal.
      'still_frames': 0,
      # Of what is trained on: the share of which one frame is shown in place of the clip, in
      # one batch with whole ones; and the share of these frames and of photos that come
      # without their text: PEM alone learns from them. See docs/pretraining.md.
      'single_frames': 0.0,
      'without_text': 0.0,
      'sampling': 'headtail',  # Or rand, uniform, nlvl_uniform, nlvl_rand.
      'eval_sampling': 'uniform',
      'image_size': 224,
      'resize': 256,  # Side of the frame before the crop.
      'resize_mode': 'squash',  # Or 'short_side', which keeps the shape.
      'crop': 'random',  # Of training; or 'centre', as evaluation has it.
      # Exclude 'horizontal_flip' where captions say left or right.
      'randaugment': {'enabled': True, 'operations': 2, 'level': 5, 'exclude': ()},
      # A folder for what frozen encoders make of every clip and text, made at the start
      # and trained from in place of pixels: docs/fine-tuning.md. '' computes it anew
      # in every step.
      'features': '',
      'bfloat16_features': False,  # Half the size, for a model that computes in float32.
      # Records that cannot be read are replaced; more than this share stops.
      'broken_share': 0.01,
      'threads': 0,  # tf.data threads; 0 lets tf.data choose.
      # Check the digests of a set below 4 GiB when it is opened. Records of
      # any set carry sums of their own, which are checked when they are read.
      'verify': True,
      # Of sets in buckets: where copies of their shards are kept ('' reads record by record
      # where they are), and their limit in GB, 0 for 100.
      'cache_dir': '',
      'cache_gb': 0.0,
    }
  )

  # A weight of 0 skips the work of that loss.
  config.loss = ml_collections.ConfigDict(
    {
      'vtc': 1.0,
      'vtm': 1.0,
      'mlm': 1.0,
      'pem': 1.0,
      # Of VTC: 'softmax' asks each video for its text among all, and back, as the
      # paper; 'sigmoid' asks of each pair whether it belongs together, as SigLIP,
      # and needs config.model.logit_bias. See docs/research.md, Which contrast.
      'vtc_form': 'softmax',
      'mask_probability': 0.15,
      # Hard negatives for VTM: 'global', from the whole batch; 'slice', from the rows of
      # the pair's own slice of config.mesh.slices, so that none crosses slow links (of
      # one slice the same); 'local', from blocks of the batch as the original's devices
      # did (0 blocks: one for each data shard). Fewer blocks than shards send less than
      # 'global' does: a ring for each.
      'negatives': 'global',
      'negative_blocks': 0,
      # Steps with uniform negatives, then steps of a linear ramp to negatives
      # by similarity. The paper samples by similarity from the start.
      'uniform_negative_steps': 0,
      'negative_ramp_steps': 0,
      # Negatives for VTM are less similar than the pair itself by so much at least (cosine):
      # where captions name only a part, what is as near may be right as well. -2: any.
      'negative_margin': -2.0,
      # Columns of the batch that VTC and the choice of negatives meet at a
      # time: memory grows with batch x chunk, the result is the same. 0: all.
      'vtc_chunk': 0,
      # What two pairs of a batch are for each other that show the same video, or
      # whose captions are equal: 'neutral' (left out of the contrast), 'positive'
      # (right for each other), or 'negative'. Of both, positive counts before
      # neutral, and neutral before negative. VTM draws negatives alone.
      'same_video': 'neutral',
      'same_caption': 'neutral',
      # Area of the region that is labelled by the prompter; see Region
      # erasing in docs/specification.md.
      'region_area': (0.3, 0.5),
      # 'original' redraws boxes that stick out, which makes them smaller than
      # that (31.5 % on average, defect 23); 'nominal' keeps the area.
      'region_rule': 'original',
      # Which of so many random regions is labelled: 'random' takes the first,
      # 'confidence' the one that the prompter is surest of, 'change' the one whose
      # pixels change most from frame to frame.
      'region_choice': 'random',
      'region_candidates': 4,
      # Whether it is a tube: a box that moves, from frame to frame, to where pixels change.
      'region_follows': False,
    }
  )

  config.prompter = ml_collections.ConfigDict(
    {
      'checkpoint': '',  # Made by configs/pretrain_prompter.py.
      'entities': '',  # A text file, one entity per line, most frequent first.
      'num_entities': 1000,  # 0: every line of the file.
      'video_templates': (),  # () means the paper's twelve.
      'image_templates': (),
      'prompts': '',  # Learned ones in place of templates, by launch/prompts.py.
      'max_prompt_tokens': 15,
      'renormalize': True,  # Defect 17: l2-normalise the averaged prompt.
      'ignore_rule': 'probability',  # 'index' is the original's, defect 3.
      'ignore_threshold': 0.2,
    }
  )

  config.optimizer = ml_collections.ConfigDict(
    {
      'learning_rate': 1e-4,  # The highest; 0 changes nothing.
      'schedule': 'linear',  # Or 'cosine', 'constant'.
      'warmup_steps': 0,
      'final_fraction': 0.0,  # Of the learning rate, at the last step.
      'b1': 0.9,
      'b2': 0.98,
      'eps': 1e-6,
      'eps_rule': 'standard',  # 'original': eps on the uncorrected root.
      'weight_decay': 1e-3,
      # Largest norm of the gradient of a step, 0: any. The original's acts on
      # the sum of the gradients of the micro-batches, this one on the gradient
      # of the mean loss: divide its value by the accumulation.
      'clip_norm': 20.0,
      # The same of each loss before they are summed, so that none drowns the others;
      # 0: any. Up to three times the work of a step.
      'clip_per_loss': 0.0,
      # Micro-batches per step. The losses are those of one batch, but VTC and
      # VTM find their negatives in the micro-batch: one pair alone is refused,
      # fewer than 8 are warned of.
      'accumulation': 1,
      # What VTC contrasts a pair with: 'micro', its micro-batch, or 'global',
      # all of the step, for one more forward pass without gradient (GradCache,
      # Gao et al. 2021). Hard negatives of VTM stay in the micro-batch.
      'accumulation_negatives': 'micro',
      # What is trained: docs/fine-tuning.md. Patterns are regular expressions
      # for whole names of parameters or parts, with commas between, such as
      # 'video_encoder,text_encoder/layer[0-3]'; what they match is held, without
      # gradients or moments. 'video_attention_and_mlp' are those weights of the
      # video encoder, as the original held them by accident in its published
      # question answering (defect 2).
      'freeze': '',
      # Instead of the kernels that match, factors of this rank are trained (LoRA,
      # Hu et al. 2021); 0: none. Their product is scaled by alpha / rank.
      'lora': {'rank': 0, 'alpha': 16.0, 'kernels': '.*/(query|value)'},
      # Factors of the learning rate: 'PATTERN=FACTOR', with commas between. The
      # last one that matches a parameter counts.
      'groups': '',
      # Factor from each layer of a tower to the one below, as in BEiT; 1: none.
      'layer_decay': 1.0,
    }
  )

  config.train = ml_collections.ConfigDict(
    {
      'steps': 1000,
      'log_every_steps': 50,
      'checkpoint_every_steps': 1000,
      'checkpoint_every_seconds': 600.0,  # 0: by steps alone.
      'keep_newest': 2,
      'eval_every_steps': 0,  # 0: at the end alone.
      # The metric whose best checkpoint is kept, e.g. 'eval/t2v_r1',
      # 'eval/accuracy', '-eval/t2v_mean_rank' (small is good); '' keeps the
      # newest only. It is of the first set of eval.sources; of several,
      # 'eval/1/t2v_r1' is of the second. Names are checked before step 1.
      'best_metric': '',
      # Start from the parameters of another run ('' is scratch). Names that
      # start with one of `new_parameters` may be missing from it, names that
      # start with one of `unused_parameters` may be left over.
      'init_from': '',
      'new_parameters': ('entity_head',),
      'unused_parameters': (),
      # Keep an average of the trained parameters, mean += (1 - ema_decay) * (new -
      # mean) in every step; it is what is evaluated, and used of a checkpoint. 0:
      # none.
      'ema_decay': 0.0,
      # A loss or gradient that is not finite: 'stop' ends the run and saves
      # nothing from it; 'skip' leaves that update out, and ends the run after
      # more than `skip_limit` of them in a row.
      'non_finite': 'stop',
      'skip_limit': 10,
      # Warn of a loss this many standard deviations above its running mean.
      'spike_deviations': 8.0,  # 0: never.
      # After SIGTERM the run saves and ends, and so long later it ends anyway.
      'stop_seconds': 600.0,  # 0: waits for ever.
      # Every host says what it waits for when nothing happens for so long.
      'standstill_seconds': 900.0,  # 0: never.
    }
  )

  config.eval = ml_collections.ConfigDict(
    {
      # Held-out sets: common.source(path, split='test'). Metrics of the first
      # are called eval/..., of several those of each eval/0/..., eval/1/...
      'sources': (),
      # Batches of the first set whose training loss is computed, as eval/loss.
      'loss_batches': 0,
      # Clips of the first set that TensorBoard shows with what the model says of
      # them, the same ones each time; 0 is none.
      'pictures': 6,
      'batch_size': 64,
      'pairs_per_call': 256,  # Pairs that the fusion encoder scores at once.
      # What orders the results of retrieval: 'matching' (the paper),
      # 'matching+similarity' (as LAVIS does) or 'similarity'; 'auto' takes
      # matching. A head that was never trained does not score: then it is the
      # similarity.
      'scoring': 'auto',
      # Pairs that matching scores: the k nearest by similarity of every text
      # and of every video; 0 is all pairs, as in the paper.
      'rerank_k': 0,
      'dual_softmax': False,  # Report it as well, under its own name.
      # Where tokens of more than 64 GiB are kept, in files that go with the
      # process; '' keeps everything in memory.
      'folder': '',
    }
  )

  # What is chosen by the memory that is there: configs/own.py.
  config.machine = ml_collections.ConfigDict(
    {
      # 'model': its size and precision, batch and accumulation; 'batch': all but
      # the model; '': nothing. Options of the command line stay as they are.
      'choose': '',
      # 'cpu', 'gpu' or 'tpu', and GiB on each device; '' and 0 ask the machine.
      'device': '',
      'memory_gib': 0.0,
    }
  )

  # Devices along each axis; -1 is all that are left. `data` shards the batch,
  # `fsdp` also parameters and moments, `tensor` the heads and the MLP of the
  # same rows: for models that do not fit otherwise, on devices close by. All three
  # are of one of `slices` (of machines with NVLink, say), between which links are slow
  # and the batch alone is sharded; 0 is as many as there are TPU slices.
  config.mesh = ml_collections.ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'slices': 0})
  return config


def option_names():
  """Returns the dotted names of all options that a config may have, whatever its model."""
  config = get_config()
  config.data.sources = config.eval.sources = (source(''),)
  of_models = (options.names({'model': make()}) for make in models.PRESETS.values())
  return set(options.names(config)).union(*of_models)
