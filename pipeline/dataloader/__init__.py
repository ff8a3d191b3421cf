"""From shards to deterministic training batches and to evaluation pairs.

In the order of imports: `pairs` (whole pairs), `sampler` (which sample stands where), `dataset` (augmented patches),
`loader` (batches of one rank).
"""
