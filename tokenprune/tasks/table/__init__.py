"""A user's own table of pictures, questions and answers as a task."""
