"""Looking into caches and mending them.

kinds.layout_of          the kind of a folder
cache.Cache              a cache opened for reading
inspect.summary          what is in it; sheet.write_sheet, page.write_page and film.write_film show it
verify.verify            what is wrong with it; shard_check.ShardCheck with one shard
repair.repair            makes again what is broken

May import the levels below.
"""
