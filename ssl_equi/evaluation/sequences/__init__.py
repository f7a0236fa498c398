"""Tasks of sequence models: aggregates of several views, and what is predicted from them."""
