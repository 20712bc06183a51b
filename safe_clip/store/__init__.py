"""What is computed once and kept, and by what it is known again."""
