"""The trainers: they run alone, from the command line, and leave everything they did in a run folder."""
