"""Which shards a batch is drawn from: plan, schedule, loader."""
