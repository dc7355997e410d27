"""Look at what is there: the runs of some tables, what failed in one, and faces by SQL."""
