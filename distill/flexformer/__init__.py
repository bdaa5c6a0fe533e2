"""What runs a student: configuration, model, mixers, engine and cache.

Flat, and importing only torch, transformers and its own siblings, because these very files travel with each
exported checkpoint: a serving machine needs no `distill`.
"""
