"""Studies: variants x seeds of one recipe, trained, judged by result files, and set side by side in a table and pictures."""
