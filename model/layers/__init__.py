"""Layers that several networks are made of.

May import nothing of ours.
"""
