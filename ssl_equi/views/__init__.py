"""Image views with known parameters: batched transforms that report and replay what they did."""
