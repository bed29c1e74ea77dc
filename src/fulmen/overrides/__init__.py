"""Parts of torch, changed, under the names users of Lightning import."""
