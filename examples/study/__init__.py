"""What each part of ALPRO teaches, on worlds that others made, over several seeds."""
