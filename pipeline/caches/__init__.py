"""Looking into caches and mending them.

kinds.layout_of          the kind of a folder
inspect.Cache            what is in it; sheet and page show it
verify.verify            what is wrong with it
repair.repair            makes again what is broken

May import the levels below.
"""
