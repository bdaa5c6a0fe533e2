"""Distil pretrained softmax Transformers into linear-attention students."""
