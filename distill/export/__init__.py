"""A student for runtimes that know neither transformers nor Python: a step of decoding and its state."""
