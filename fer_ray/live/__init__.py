"""The live view: faces of a camera, labeled as they move, in a page that this process serves."""
