"""Tasks of predictors of one view from another: retrieval, consistency, the poses of capsules."""
