"""Stage evaluate: how well people are reenacted whom no network has seen.

protocol.evaluate        the stage
kept.Kept                what is measured so far, so that a killed run goes on
sums                     what is added up piece by piece
methods.Synthesizers     what draws
metrics                  the numbers, with unit and range
instruments.Instruments  what measures pictures: judging networks, face mesh, calibrated expression
published.PublishedInstruments  the instruments of papers, where their files were imported
lips.lips                SyncNet on whole clips that have sound
truth.Truth              what only generated heads allow
film_measures            how steady a film is, and how it follows its driver; film_watch sees it being made
gallery.contact_sheet    pictures of the report; film runs at the speed of the clip
report.write_report      tables and the page
legend                   what tables and columns are called, and which way is better

May import the levels below.
"""
