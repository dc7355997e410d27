"""Ask people for the truth about a sample of faces, and say what follows for all."""
