"""What several test modules share: real parts to test against, and the rules for when they are missing."""
