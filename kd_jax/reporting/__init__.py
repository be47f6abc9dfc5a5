"""Compare measured models, and report the result in words, tables and plots."""
