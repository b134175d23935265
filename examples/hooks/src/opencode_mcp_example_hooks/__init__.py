"""Examples of the four instance hooks, one module each."""
