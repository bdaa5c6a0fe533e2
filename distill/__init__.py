"""Distil pretrained softmax Transformers into linear-attention students."""

import logging

# peft imports it where it is installed, and it then tells of kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
