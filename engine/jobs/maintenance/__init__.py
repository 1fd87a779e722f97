"""What any process repeats: mend what crashes left, remove what has expired."""
