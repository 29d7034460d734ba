"""Samples on disk: shards, tables, the index of a multi-view cache, files sealed with a checksum.

samples.Kind             what every kind of sample holds: names, types, shapes and codecs of its fields
shards.write_shard       samples to a tar with a sidecar; ShardReader reads them
tables.write_table       tables, and the schemas of those of `ingest`; read_rows, usable, meshes, labels_of
view_index.ViewIndex     the frames of a multi-view cache, also behind an address; write_index makes it
sealed.write_sealed      data with a JSON beside it that holds its checksum; read_sealed, check_sealed
storage.Storage          a folder or an address

May import core.
"""
