"""The stages as Lightning modules: `language` trains a teacher, `attention` and `logits` distil it."""
