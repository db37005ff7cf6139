"""The terminal tool: queues demos, accuracy runs and predictions, and shows what came out."""
