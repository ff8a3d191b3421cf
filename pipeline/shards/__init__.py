"""The WebDataset shard format, its index, and shards in object storage."""
