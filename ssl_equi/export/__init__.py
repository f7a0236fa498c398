"""Encoders, predictors and sequence models as files; checkpoints of others."""
