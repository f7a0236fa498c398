"""What several objectives are made of: heads, predictors, terms, and arithmetic on the global batch."""
