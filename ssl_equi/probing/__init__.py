"""Probes: heads trained on frozen features, their metrics, baselines, records and the report of a run."""
