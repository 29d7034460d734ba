"""Samples on disk: shards, tables and the index of a multi-view cache.

shards.write_shard       samples to a tar with a sidecar; ShardReader reads them
samples.image_tensor     what the fields of samples hold
tables.write_table       tables, and the schemas of those of `ingest`
view_index.ViewIndex     the frames of a multi-view cache, also behind an address
storage.Storage          a folder or an address

May import core.
"""
