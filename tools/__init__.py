"""What makes the site and the proof: examples, diagrams, notebooks, results, tables, the mkdocs hook."""
