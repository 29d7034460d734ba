"""Stages render_genhead and render_views: shards of heads and of pseudo views.

genhead.render_genhead      synthetic heads
views.render_views          the multi-view cache
quality_gate.measure        which frames are good enough
position_map.position_map   where on the canonical head a pixel lies
landmarks.view_landmarks    where in each view the landmarks of the fitted head lie

May import the levels below.
"""
