"""The stages that an ablation changes: `--config=FILE:STAGE` or `STAGE,demo`.

  python launch/main.py --config=configs/ablations/without_pem.py:pretrain \\
    --workdir=runs/without_pem
  python launch/main.py --config=configs/ablations/without_pem.py:retrieval \\
    --workdir=runs/without_pem_retrieval \\
    --config.train.init_from=runs/without_pem

launch/ablations.py runs all of them on the embedded data set.
"""

from configs import finetune_msrvtt_qa, finetune_msrvtt_retrieval, pretrain

STAGES = {
  'pretrain': pretrain.get_config,
  'retrieval': finetune_msrvtt_retrieval.get_config,
  'qa': finetune_msrvtt_qa.get_config,
}


def get_config(argument, change):
  """Returns the config of a stage with the change of an ablation.

  Args:
    argument: 'pretrain', 'retrieval' or 'qa', and after a comma the scale that
      its config takes, e.g. 'retrieval,demo'.
    change: (config, stage) -> None, changes the config.
  Raises:
    ValueError: for an unknown stage.
  """
  stage, _, scale = argument.partition(',')
  if stage not in STAGES:
    raise ValueError(
      f"unknown {stage=} after ':' in --config; choose one of "
      f'{sorted(STAGES)}, with a scale as in retrieval,demo.'
    )
  config = STAGES[stage](scale)
  change(config, stage)
  return config
