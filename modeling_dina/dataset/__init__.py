"""Scores every row of a data set, in shards.

`sources` reads rows, `decoding` decodes their images in worker processes, `batches` scores them, and `shards` stores
the results. `run` puts these together.
"""
