"""The student that the server's tests have, too."""

from serve.conftest import checkpoint, student, tokenizer

__all__ = ["checkpoint", "student", "tokenizer"]
