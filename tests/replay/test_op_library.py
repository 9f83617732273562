"""A model of a custom op: it loads only where its library is named. The library is real, and registered through
TensorFlow's C API, which compiles in a second."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from replay import tf_protos
from replay.executor.api import OK, ExecutorError
from replay.workbench import Workbench
from tests.support.processes import run_tensorflow
from tests.support.tf_requests import DT_FLOAT, tensor

pytestmark = pytest.mark.server

LIBRARY = """
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

static void Compute(void* kernel, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor* input = nullptr;
  TF_GetInput(context, 0, &input, status);
  TF_SetOutput(context, 0, input, status);
  TF_DeleteTensor(input);
  TF_DeleteStatus(status);
}

__attribute__((constructor)) static void Register(void) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder("WarmtapSame");
  TF_OpDefinitionBuilderAddInput(op, "x: float");
  TF_OpDefinitionBuilderAddOutput(op, "y: float");
  TF_RegisterOpDefinition(op, status);
  TF_KernelBuilder* kernel = TF_NewKernelBuilder("WarmtapSame", "CPU", nullptr, &Compute, nullptr);
  TF_RegisterKernelBuilder("WarmtapSame", kernel, status);
  TF_DeleteStatus(status);
}
"""

MODEL = """
import sys
import tensorflow.compat.v1 as tf
tf.load_op_library(sys.argv[1])
with tf.Graph().as_default() as graph, tf.Session() as session:
    x = tf.placeholder(tf.float32, [None], name="x")
    y = graph.create_op("WarmtapSame", [x], [tf.float32], name="y").outputs[0]
    tf.saved_model.simple_save(session, sys.argv[2], inputs={"x": x}, outputs={"y": y})
print("{}")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    directory = tmp_path_factory.mktemp("op")
    (directory / "op.cc").write_text(LIBRARY)
    wheel = tf_protos.wheel_directory()
    subprocess.run(
        [compiler, "-w", "-std=c++17", "-shared", "-fPIC", "-o", "op.so", "op.cc", f"-I{wheel / 'include'}",
         f"-L{wheel}", "-l:libtensorflow_framework.so.2"],
        cwd=directory,
        check=True,
    )  # fmt: skip
    return directory / "op.so"


def test_a_model_of_a_custom_op(library: Path, tmp_path: Path) -> None:
    model = tmp_path / "model" / "1"
    run_tensorflow(MODEL, str(library), str(model))
    with Workbench() as bench, pytest.raises(ExecutorError, match="WarmtapSame"):
        bench.open(model)
    with Workbench(libraries=[library]) as bench:
        executor = bench.open(model)
        fed = tensor(DT_FLOAT, [2], [1.0, 2.0]).SerializeToString()
        done = executor.run([("x:0", fed)], ["y:0"])
        assert (done.code, done.message) == (OK, "")
        assert executor.builds() == 1
