"""What files look like: pictures with their metadata, manifests, tensors, contact sheets."""
