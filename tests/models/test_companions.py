"""Companion packages of torch whose build does not fit are kept out; others are left alone."""

import os
import subprocess
import sys

from divsel_ray.models.companions import block_mismatched, mismatched


def test_cuda_builds_beside_a_cpu_torch_do_not_fit():
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.11.0+cpu", "torchcodec": "0.17.0"}
    assert mismatched(versions) == ["torchvision", "torchcodec"]


def test_a_gpu_build_of_torch_keeps_its_companions():
    assert mismatched({"torch": "2.13.0", "torchvision": "0.28.0"}) == []
    assert mismatched({"torch": "2.13.0+cu130", "torchvision": "0.28.0+cu130"}) == []


def test_child_processes_can_import_the_model_classes_too():
    """vLLM looks at a model's class in a fresh process, which must not trip over a bad build."""
    block_mismatched()
    code = "from transformers import Gemma3ForCausalLM, BertForSequenceClassification; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]
