"""Speed against a peer, measured side by side: one file a part."""
