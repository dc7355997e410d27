"""The models of a team: what lies in a folder or store, and which of them an alias names."""
