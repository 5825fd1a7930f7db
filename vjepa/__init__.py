"""vjepa: pre-train video encoders by predicting features of hidden space-time tokens, and prove what was learned."""

__version__ = "0.1.0"
