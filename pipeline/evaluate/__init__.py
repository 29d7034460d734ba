"""Stage evaluate: how well people are reenacted whom no network has seen.

protocol.evaluate        the stage
methods.Synthesizers     what draws
metrics                  the numbers, with unit and range
truth.Truth              what only generated heads allow
report.write_pictures    contact sheet, videos, page

May import the levels below.
"""
