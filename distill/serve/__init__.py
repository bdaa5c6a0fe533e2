"""Serving a student: many requests in one batch, whose rows each carry a state of fixed size.

`__main__` → `app` (routes, errors) → `api` (what may be asked) → `host` (transformers' handlers) → `batch` (the
decoding thread) → `choice`, `stream`; `prefixes` keeps states of texts read before, and `states` does with caches what
that takes.
"""
