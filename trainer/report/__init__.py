"""What the reports look like: the shell of a page, its charts, its pictures."""
