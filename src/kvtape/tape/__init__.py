"""What is stored: file formats, names, and what follows from them, with no I/O."""
