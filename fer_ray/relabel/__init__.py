"""Label kept crops with another model: no image is fetched, decoded or searched for faces again."""
