"""The project's nouns: tasks, samples, machines and the errors a user may see."""
