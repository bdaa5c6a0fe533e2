"""No test reaches for the network, and Triton's kernels run where there is no GPU: set before anything reads it."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
