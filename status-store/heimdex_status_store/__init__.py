"""The status store: records every event of every job in Postgres, and is the only writer there.

Any number of them may run at once. Imports only contracts; the tables are its own, the gateway reads one view.
"""
