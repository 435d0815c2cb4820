"""What is made of the parts of a report. Each writes beside and renames."""
