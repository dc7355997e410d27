"""Search spaces: from a YAML file to parameters, and from these to recipes."""
