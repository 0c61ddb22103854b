"""General helpers, independent of video and networks."""
