"""One runnable file a system: its data, its baselines, its claims."""
