"""What the commands that measure share: made-up inputs, and the measuring."""
