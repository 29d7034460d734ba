"""The graph at the published counts, with networks of scale smoke: `make test-counts`.

data_set  what each stage finds, at full length: tables, and shards that are links to a few real ones
stages    a stage that is started, killed and resumed, with its seconds and its memory
"""
