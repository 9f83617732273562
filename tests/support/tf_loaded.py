"""What :mod:`tests.support.tf_fork` has loaded before it forks."""

from __future__ import annotations

import os

# Read on import: no word of what TensorFlow could do with other instructions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow
import tensorflow_serving.apis.prediction_service_pb2_grpc

__all__ = ["tensorflow", "tensorflow_serving"]
