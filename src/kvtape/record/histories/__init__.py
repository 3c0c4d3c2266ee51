"""Whose story is recorded: forks, gaps, going back, full resyncs."""
