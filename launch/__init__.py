"""The commands. Imported before TensorFlow is, to quiet it.

TensorFlow only reads and scales frames; what it says while starting is noise.
"""

import importlib.util
import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

if importlib.util.find_spec('absl') is None:
  from launch import not_installed  # noqa: F401
