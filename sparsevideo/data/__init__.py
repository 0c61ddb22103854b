"""Where pixels come from: lists, decoders, clips, transforms and loaders."""
