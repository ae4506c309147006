"""Meta-World: a robot arm at fifty tasks in three dimensions, seen from several sides."""
